// Texts, words and offsets. JavaScript counts UTF-16 units; files of sentences count code points.

// One word, as ner_cl cuts text: a run of letters, marks, digits and underscores, or one character of a script that is
// written without spaces.
const UNSPACED =
  /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Bopo}\u30fc\uff70\p{sc=Thai}\p{sc=Lao}\p{sc=Khmr}\p{sc=Mymr}\p{sc=Tibt}\p{sc=Tale}]/u;
const LETTER = /[\p{L}\p{M}\p{N}_\u00ad\u200c\u200d]/u;
const MARK = /\p{M}/u;

/** The span without outer space, grown to whole words; null if nothing is left of it. */
export function wholeWords(text, start, end) {
  while (start < end && /\s/.test(text[start])) start++;
  while (end > start && /\s/.test(text[end - 1])) end--;
  if (start === end) return null;
  while (start > 0 && sameWord(text, start)) start -= before(text, start).length;
  while (end < text.length && sameWord(text, end)) end += after(text, end).length;
  return { start, end };
}

/** Whether a word, or a character, goes on at a place. */
function sameWord(text, place) {
  const left = before(text, place), right = after(text, place);
  if (/[\ud800-\udbff]$/.test(left) || MARK.test(right)) return true;
  return LETTER.test(left) && LETTER.test(right) && !UNSPACED.test(left) && !UNSPACED.test(right);
}

function before(text, place) {
  const low = text.charCodeAt(place - 1);
  return place > 1 && low >= 0xdc00 && low <= 0xdfff ? text.slice(place - 2, place) : text[place - 1];
}

function after(text, place) {
  return String.fromCodePoint(text.codePointAt(place));
}

/** A line that `ner-cl learn` reads: offsets in code points, and the types that every mention is marked of. */
export function jsonLine(text, spans, complete) {
  const points = (units) => [...text.slice(0, units)].length;
  return JSON.stringify({
    text,
    spans: spans
      .filter((span) => complete.includes(span.type))
      .map((span) => ({ start: points(span.start), end: points(span.end), label: span.type })),
    annotated_types: complete,
  });
}
