// F1 of every type after every step, as the model's own history tells it.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 72, HEIGHT = 20;

/** A table with a row for every type and a column for every step. */
export function historyTable(model) {
  const steps = model.history.filter((step) => Object.keys(step.f1).length);
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  const columns = steps.map((step) => `${step.step} ${scoredOn(step)}`);
  for (const title of ["step", ...columns, ""]) head.append(cell("th", title, "col"));
  const body = table.createTBody();
  for (const { type, step: taught } of model.types) {
    const row = body.insertRow();
    row.append(cell("th", type));
    for (const step of steps) {
      const score = step.f1[type];
      const sign = step.measured[type] === "agreement" ? "=" : "";
      const td = cell("td", score == null ? "" : sign + (100 * score).toFixed(1));
      td.classList.toggle("taught", step.step === taught);
      row.append(td);
    }
    row.insertCell().append(line(steps.map((step) => step.f1[type])));
  }
  return table;
}

/** One step is measured on dev sentences, a stream on its test set. */
function scoredOn(step) {
  return Object.keys(step.measured).length ? "dev" : "test";
}

/** How to read the table. */
export function historyNote(model) {
  const steps = model.history.filter((step) => Object.keys(step.f1).length);
  if (!steps.length) return "This model's history tells no scores.";
  const agreed = steps.some((step) => Object.values(step.measured).includes("agreement"));
  return `Bold: the step that taught it.${agreed ? " =: agreement with the model before." : ""}`;
}

function cell(kind, text, scope = "row") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (kind === "th") made.scope = scope;
  return made;
}

/** The scores as a line from 0 to 1. */
function line(scores) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-hidden", "true");
  const place = (index) => (scores.length > 1 ? (index * (WIDTH - 4)) / (scores.length - 1) : WIDTH - 4) + 2;
  const points = scores
    .map((score, index) => (score == null ? null : [place(index), (1 - score) * (HEIGHT - 4) + 2]))
    .filter(Boolean);
  const polyline = document.createElementNS(SVG, "polyline");
  polyline.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  svg.append(polyline);
  for (const [x, y] of points) {
    const circle = document.createElementNS(SVG, "circle");
    circle.setAttribute("cx", x);
    circle.setAttribute("cy", y);
    circle.setAttribute("r", 2);
    svg.append(circle);
  }
  return svg;
}
