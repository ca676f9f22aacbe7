"use strict";
// Asks the admin API every second, and shows everything as text.

const EVERY = 1000; // milliseconds
const STEPS = {
  requires_action: ["give_details", "expire"],
  pending: ["succeed", "return_money"],
  succeeded: ["return_money"],
};
const element = (id) => document.getElementById(id);
const utc = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");

async function call(path, body) {
  const how = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const answer = await fetch(`/_emulator${path}`, how);
  const shown = await answer.json();
  if (!answer.ok) throw new Error(shown.error);
  return shown;
}

// What a person did wrong stays until they do something else; what keeps the page from
// asking, until it can again.
const problems = { action: "", watching: "" };
function tell(about, problem) {
  problems[about] = problem;
  element("problem").textContent = Object.values(problems).filter(Boolean).join(" ");
}

async function act(path, body) {
  try {
    await call(path, body);
    tell("action", "");
  } catch (error) {
    tell("action", error.message);
  }
  await update();
}

function lineOf(...values) {
  const line = document.createElement("tr");
  for (const value of values) {
    const cell = line.insertCell();
    if (value instanceof Node) cell.append(value);
    else cell.textContent = value ?? "";
  }
  return line;
}

function button(text, pressed) {
  const made = document.createElement("button");
  made.textContent = text;
  made.addEventListener("click", pressed);
  return made;
}

function requestLine(request) {
  const line = lineOf(
    utc(request.received_at),
    request.method,
    request.path,
    `${request.status ?? "-"}${request.replayed ? " replayed" : ""}`,
    request.milliseconds?.toFixed(1),
    request.fault,
    request.idempotency_key,
    request.stripe_account,
  );
  line.cells[4].className = "n";
  if (request.fault || request.status === null || request.status >= 400) {
    line.cells[3].className = "bad";
  }
  return line;
}

function refundLine(refund) {
  const steps = document.createElement("span");
  for (const step of STEPS[refund.status] ?? []) {
    const path = `/refunds/${encodeURIComponent(refund.id)}/${step}`;
    steps.append(button(step, () => act(path, {})), " ");
  }
  const { id, status, amount, currency } = refund;
  const line = lineOf(id, status, amount, currency, utc(refund.created), steps);
  line.cells[2].className = "n";
  return line;
}

const words = (counts) =>
  Object.entries(counts).map(([name, count]) => `${name} ${count}`).join(", ");

function booksLines({ cancellations, cancel_requests, retrieve_requests, ...books }) {
  const counts = Object.values(cancellations);
  const lines = [
    lineOf("refunds canceled", counts.length),
    lineOf("of them more than once", counts.filter((count) => count > 1).length),
  ];
  for (const [name, value] of Object.entries(books)) {
    const text = typeof value === "object" ? words(value) : value;
    lines.push(lineOf(name.replaceAll("_", " "), text || "none"));
  }
  return lines;
}

// A table that says the same stays as it is: somebody may be about to press a button.
const kept = {};
function keep(id, data, lines) {
  const text = JSON.stringify(data);
  if (kept[id] === text) return;
  kept[id] = text;
  document.querySelector(`#${id} tbody`).replaceChildren(...lines(data));
}

function show([clock, faults, requests, refunds, books]) {
  element("now").textContent = `${utc(clock.now)} UTC`;
  const script = faults.script.length ? `next: ${faults.script.join(", ")}` : "";
  const storm = words(faults.storm);
  element("faults").textContent =
    [script, storm && `storm: ${storm}`].filter(Boolean).join("; ") || "none";
  if (!element("known").children.length) {
    for (const name of Object.keys(faults.known)) {
      element("known").append(new Option(`script:${name}`));
    }
  }
  keep("requests", requests.slice(-100).reverse(), (each) => each.map(requestLine));
  keep("refunds", refunds, (each) => each.map(refundLine));
  keep("books", books, booksLines);
}

const PATHS = ["/clock", "/faults", "/requests", "/refunds", "/books"];
let begun = 0;
let shown = 0;
async function update() {
  const turn = ++begun;
  let problem = "";
  let answers;
  try {
    answers = await Promise.all(PATHS.map((path) => call(path)));
  } catch (error) {
    problem = `No answer: ${error.message}`;
  }
  // Answers to what was asked before what is shown are older than it.
  if (turn < shown) return;
  shown = turn;
  tell("watching", problem);
  if (answers) show(answers);
}

async function watch() {
  try {
    if (!document.hidden) await update();
  } finally {
    setTimeout(watch, EVERY);
  }
}

for (const each of document.querySelectorAll("[data-advance]")) {
  each.addEventListener("click", () =>
    act("/clock", { advance: Number(each.dataset.advance) }));
}
element("load").addEventListener("submit", (event) => {
  event.preventDefault();
  act("/faults/load", { spec: element("spec").value });
});
element("clear").addEventListener("click", () => act("/faults/clear", {}));
element("add").addEventListener("click", () => act("/refunds", {}));
watch();
