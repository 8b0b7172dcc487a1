"""F1 of every way to merge the blocks of one model, on the same text and from one pass.

    python -m benchmarks.merging MODEL DATA [--threads T]

MODEL has one block per step (head `addner`); DATA is annotated for its types. `ner-cl evaluate --merge` shows one way
in detail. In a model without measured vote weights, each vote counts 1.
"""

import argparse
from pathlib import Path

import torch

from ner_cl.data.readers import read_sentences
from ner_cl.evaluate.counts import Counts, count_spans, macro_f1, micro_f1
from ner_cl.model.emissions import stretches_of
from ner_cl.model.store import load_model
from ner_cl.types import Span

MERGES = ("resolver", "viterbi", "vote", "majority")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, device="auto")
    gold = [sentence for sentence in read_sentences(arguments.data, types=model.types) if sentence.words]
    found: dict[str, list[list[Span]]] = {merge: [[] for _ in gold] for merge in MERGES}
    for places, emissions in stretches_of(model, model.encode(gold)):
        for merge, spans in found.items():
            model.head.merge_by(merge)
            for row, start, end, type_ in model.head.spans(emissions).tolist():
                sentence, first = places[row]
                spans[sentence].append(Span(first + start, first + end, model.types[type_]))
    print("| merge | micro F1 | macro F1 | precision | recall |\n|---|---|---|---|---|")
    for merge, spans in found.items():
        counts = count_spans(gold, spans, model.types)
        total = sum(counts.values(), start=Counts())
        cells = (micro_f1(counts), macro_f1(counts), total.precision, total.recall)
        print(f"| {merge} | " + " | ".join(f"{100 * (cell or 0.0):.1f}" for cell in cells) + " |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("data", type=Path, help="an annotated file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
