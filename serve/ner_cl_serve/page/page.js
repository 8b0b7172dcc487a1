// The page: find entities, filter them, correct them, export the corrections.

import { historyNote, historyTable } from "./history.js";
import { jsonLine, wholeWords } from "./text.js";

const by = (id) => document.getElementById(id);
const HUES = [212, 28, 140, 330, 265, 55, 180, 0, 95, 300, 195, 240];

const state = {
  model: null, // what GET /v1/model told
  text: "", // that was searched
  entities: [], // of it: {start, end, type, score}, in UTF-16 units; score is null for a span set by hand
  hidden: new Set(), // types
  complete: new Set(), // types of which the person has marked every mention
  picked: null, // an entity, or {start, end} of selected words
  kept: [], // lines to export
  token: "",
};

// --- talking with the service

async function ask(path, body) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch {
    throw new Error("The service does not answer.");
  }
  by("token-form").hidden = response.status !== 401;
  if (response.status === 401) by("token").focus();
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

async function readModel() {
  state.model = await ask("v1/model");
  const steps = state.model.history.length;
  by("model").textContent = `${state.model.model}, ${steps} ${steps === 1 ? "step" : "steps"}`;
  by("history").replaceChildren(historyTable(state.model));
  by("history").scrollLeft = by("history").scrollWidth; // the newest step
  by("note").textContent = historyNote(state.model);
  show();
}

async function find() {
  const text = by("text").value;
  if (!text.trim()) return say("Paste a text first.", true);
  by("find").disabled = true;
  say("Reading …");
  try {
    const answer = await ask("v1/entities", { texts: [text], offsets: "utf16" });
    if (answer.model !== state.model?.model) await readModel();
    Object.assign(state, { text, entities: answer.documents[0].entities, picked: null });
    by("found").hidden = false;
    show();
    say(`${state.entities.length} ${state.entities.length === 1 ? "entity" : "entities"} found.`);
  } catch (error) {
    say(error.message, true);
  } finally {
    by("find").disabled = false;
  }
}

function say(message, wrong = false) {
  by("status").textContent = message;
  by("status").classList.toggle("wrong", wrong);
}

// --- what is shown

const least = () => Number(by("score").value);
const isMarked = (entity) => entity.score === null || entity.score >= least();
const isShown = (entity) => isMarked(entity) && !state.hidden.has(entity.type);
const inOrder = (entities) => [...entities].sort((a, b) => a.start - b.start);
const shown = () => inOrder(state.entities.filter(isShown));

function types() {
  const known = state.model ? state.model.types.map((record) => record.type) : [];
  return [...new Set([...known, ...state.entities.map((entity) => entity.type), ...state.complete])];
}

function coloured(element, type) {
  element.style.setProperty("--hue", HUES[types().indexOf(type) % HUES.length]);
  return element;
}

function show() {
  showResult();
  showTypes();
  showComplete();
  showPicked();
  by("known-types").replaceChildren(...types().map((type) => new Option(type)));
  by("export").disabled = !state.kept.length;
  by("count").textContent = state.kept.length ? `${state.kept.length} kept` : "";
}

function showResult() {
  const parts = [];
  let place = 0;
  for (const entity of shown()) {
    if (entity.start < place) continue; // nested inside the one before
    parts.push(state.text.slice(place, entity.start), mark(entity));
    place = entity.end;
  }
  const result = by("result"), focused = result.contains(document.activeElement);
  result.replaceChildren(...parts, state.text.slice(place));
  if (focused) result.querySelector(".picked")?.focus();
}

function mark(entity) {
  const element = coloured(document.createElement("mark"), entity.type);
  const score = entity.score === null ? "" : ` ${entity.score.toFixed(2)}`;
  element.className = "entity";
  element.classList.toggle("own", entity.score === null);
  element.classList.toggle("picked", entity === state.picked);
  element.textContent = state.text.slice(entity.start, entity.end);
  element.dataset.label = entity.type + score;
  element.tabIndex = 0;
  element.setAttribute("role", "button");
  element.setAttribute("aria-label", `${element.textContent}, ${entity.type}${score}`);
  element.addEventListener("click", () => pick(entity));
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick(entity);
      by("type").focus();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      pick(entity);
      remove();
    }
  });
  return element;
}

function showTypes() {
  const rows = types().map((type) => {
    const count = state.entities.filter((entity) => entity.type === type && isShown(entity)).length;
    const name = coloured(document.createElement("span"), type);
    name.className = "swatch";
    name.textContent = type;
    const hint = document.createElement("span");
    hint.className = "hint";
    hint.textContent = count;
    const change = (on) => (on ? state.hidden.delete(type) : state.hidden.add(type));
    return checkbox(type, !state.hidden.has(type), change, name, hint);
  });
  replaceKeepingFocus(by("types"), rows);
}

function showComplete() {
  const boxes = types().map((type) => {
    const change = (on) => (on ? state.complete.add(type) : state.complete.delete(type));
    return checkbox(type, state.complete.has(type), change, type);
  });
  replaceKeepingFocus(by("complete"), boxes);
}

function checkbox(type, checked, change, ...content) {
  const label = document.createElement("label");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked, value: type });
  box.addEventListener("change", () => {
    change(box.checked);
    show();
  });
  label.append(box, ...content);
  return label;
}

/** Replaces a list of checkboxes; the one that has the focus keeps it. */
function replaceKeepingFocus(list, items) {
  const focused = list.contains(document.activeElement) ? document.activeElement.value : null;
  list.replaceChildren(...items);
  if (focused !== null) [...list.querySelectorAll("input")].find((box) => box.value === focused)?.focus();
}

// --- correcting

function pick(chosen) {
  state.picked = chosen;
  if (chosen?.type) by("type").value = chosen.type;
  showResult();
  showPicked();
}

function showPicked() {
  const { picked } = state;
  by("set").disabled = !picked;
  by("remove").disabled = !picked?.type;
  if (picked) by("picked").textContent = `“${state.text.slice(picked.start, picked.end)}”`;
  else by("picked").textContent = "To correct, choose an entity, or select words here or in the text above.";
}

/** Words selected in the result or in the text field, whichever the person used last. */
function pickSelection() {
  const field = by("text"), result = by("result"), selection = document.getSelection();
  let range = null;
  if (document.activeElement === field && field.value === state.text) {
    range = [field.selectionStart, field.selectionEnd];
  } else if (!selection.isCollapsed && result.contains(selection.getRangeAt(0).commonAncestorContainer)) {
    const chosen = selection.getRangeAt(0), lead = document.createRange();
    lead.setStart(result, 0);
    lead.setEnd(chosen.startContainer, chosen.startOffset);
    const start = lead.toString().length;
    range = [start, start + chosen.toString().length];
  }
  const words = range && !by("found").hidden ? wholeWords(state.text, ...range) : null;
  if (words) {
    state.picked = state.entities.find((e) => isShown(e) && e.start === words.start && e.end === words.end) ?? words;
    showPicked();
  }
}

function setType() {
  const type = by("type").value.trim();
  if (!state.picked) return;
  if (!type) return say("Name the type.", true);
  const { start, end, type: before } = state.picked;
  const span = { start, end, type, score: null };
  // What is hidden stays out of the way; what is shown gives way to what the person says.
  state.entities = state.entities.filter((entity) => entity.end <= start || entity.start >= end);
  state.entities.push(span);
  for (const touched of [type, before]) if (touched) state.complete.add(touched);
  state.hidden.delete(type);
  state.picked = span;
  show();
  say(`“${state.text.slice(start, end)}” is ${type} now.`);
}

function remove() {
  const { picked } = state;
  if (!picked?.type) return;
  state.entities = state.entities.filter((entity) => entity !== picked);
  state.complete.add(picked.type);
  state.picked = null;
  show();
  const marks = by("result").querySelectorAll(".entity");
  const next = shown().findIndex((entity) => entity.start >= picked.start);
  (marks[next] ?? marks[marks.length - 1] ?? by("text")).focus();
  say(`“${state.text.slice(picked.start, picked.end)}” is no ${picked.type} any more.`);
}

function keep() {
  const complete = types().filter((type) => state.complete.has(type));
  if (!complete.length) return say("Tick the types of which every mention is marked.", true);
  // Also what is only hidden: a type of which every mention is said to be marked must not lose any.
  const line = jsonLine(state.text, inOrder(state.entities.filter(isMarked)), complete);
  const same = state.kept.findIndex((kept) => JSON.parse(kept).text === state.text);
  if (same < 0) state.kept.push(line);
  else state.kept[same] = line;
  show();
  say(same < 0 ? "Kept." : "Kept in place of what was kept of this text before.");
}

function download() {
  const file = new Blob(state.kept.map((line) => `${line}\n`), { type: "application/x-ndjson" });
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(file), download: "corrections.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- beginning

function onSubmit(id, act) {
  by(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

onSubmit("find-form", find);
onSubmit("edit", setType);
onSubmit("keep-form", keep);
onSubmit("token-form", () => {
  state.token = by("token").value.trim();
  readModel().then(() => say(""), (error) => say(error.message, true));
});
by("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find();
});
by("remove").addEventListener("click", remove);
by("export").addEventListener("click", download);
by("score").addEventListener("input", () => {
  by("least").textContent = least().toFixed(2);
  show();
});
document.addEventListener("selectionchange", pickSelection);
window.addEventListener("beforeunload", (event) => state.kept.length && event.preventDefault());
showPicked();
readModel().catch((error) => say(error.message, true));
