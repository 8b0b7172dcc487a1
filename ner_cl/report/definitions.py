"""Short descriptions of the scores of a matrix; `ner_cl.evaluate.metrics` has the exact definitions."""

__all__ = ["DEFINITIONS"]

DEFINITIONS = {
    "average/micro_f1": "micro F1 of the types seen so far, mean over steps",
    "average/macro_f1": "macro F1 of the types seen so far, mean over steps",
    "average/step_mean_f1": "mean over steps of the mean F1 of each step's types",
    "final/micro_f1": "micro F1 after the last step",
    "final/macro_f1": "macro F1 after the last step",
    "final/step_mean_f1": "mean F1 of each step's types after the last step",
    "forgetting/max_drop": "best F1 ever less the last, mean over old types; never negative",
    "forgetting/max_drop_earlier": "best F1 before the last step less the last, mean over old types",
    "forgetting/first_drop": "F1 when learned less the last, mean over old types",
    "forgetting/step_max_drop": "best F1 ever less the last, mean over old steps",
    "bwt/final": "backward transfer: last F1 less that when learned, mean over old types",
    "bwt/lower_triangle": "backward transfer: every later F1 less that when learned, mean over old types and steps",
    "bwt/step_final": "backward transfer: last F1 less that when learned, mean over old steps",
    "old/macro_f1_average": "macro F1 of types of earlier steps, mean over steps from the second on",
    "new/macro_f1_average": "macro F1 of the step's own types, mean over steps from the second on",
    "learning/new_f1_mean": "F1 right after the step that taught a type, mean over types",
}
