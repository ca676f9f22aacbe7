"use strict";
// The table of all refunds: a hundred thousand rows as elements would take a browser
// minutes, so it shows a page of them at a time.

const ROWS_OF_PAGE = 100;
const MOST_ON_PAPER = 3000;
const ATTENTION = ["unknown", "failed", "not_cancelable", "open"];

const { columns, rows } = JSON.parse(document.getElementById("data").textContent);
const place = Object.fromEntries(columns.map(({ name }, column) => [name, column]));
const element = (id) => document.getElementById(id);
const body = document.querySelector("#all tbody");
const heads = document.querySelectorAll("#all th");

let order = rows.map((_, row) => row);
let found = order;
let page = 0;
let sorted = { column: -1, up: true };

const texts = [];
const searchText = (row) =>
  texts[row] ??= rows[row].map(shownText).join(" ").toLowerCase();

function shownText(value, column) {
  return value === null ? "" : columns[column].kind === "time" ? utc(value) : value;
}

// Most refunds share a few days, and a Date for each would take as long as all the rest.
const dates = new Map();
function utc(seconds) {
  const day = Math.floor(seconds / 86400);
  if (!dates.has(day)) {
    const midnight = new Date(day * 86400000);
    // A server may have sent any number.
    dates.set(day, Number.isNaN(midnight.getTime())
      ? null : midnight.toISOString().slice(0, -14));
  }
  if (dates.get(day) === null) return String(seconds);
  const rest = Math.floor(seconds - day * 86400);
  const time = [rest / 3600, (rest / 60) % 60]
    .map((part) => String(Math.floor(part)).padStart(2, "0"));
  return `${dates.get(day)} ${time.join(":")}`;
}

function lineOf(row) {
  const line = document.createElement("tr");
  rows[row].forEach((value, column) => {
    const cell = line.insertCell();
    cell.textContent = shownText(value, column);
    cell.dataset.name = columns[column].title;
    cell.className = columns[column].kind;
    if (column === place.outcome) cell.classList.add(value);
  });
  return line;
}

function show(first = page * ROWS_OF_PAGE, end = first + ROWS_OF_PAGE) {
  const shown = found.slice(first, end);
  body.replaceChildren(...shown.map(lineOf));
  const of = found.length.toLocaleString("en");
  element("where").textContent = shown.length
    ? `${(first + 1).toLocaleString("en")} to ` +
      `${(first + shown.length).toLocaleString("en")} of ${of}`
    : "none";
  element("back").disabled = page === 0;
  element("next").disabled = end >= found.length;
}

// Sums are exact: digits in the smallest unit as a BigInt.
function sumsOf(chosen) {
  const sums = new Map();
  for (const row of chosen) {
    const amount = rows[row][place.amount];
    if (amount === null) continue;
    const currency = rows[row][place.currency];
    const digits = amount.replaceAll(",", "").replace(".", "");
    const sum = sums.get(currency) ?? { minor: 0n, count: 0 };
    sum.minor += BigInt(digits);
    sum.count += 1;
    sum.decimals = (amount.split(".")[1] ?? "").length;
    sums.set(currency, sum);
  }
  return [...sums].sort().map(([currency, { minor, decimals }]) => {
    const sign = minor < 0n ? "-" : "";
    const digits = String(minor < 0n ? -minor : minor).padStart(decimals + 1, "0");
    const whole = BigInt(digits.slice(0, digits.length - decimals)).toLocaleString("en");
    const part = decimals ? `.${digits.slice(-decimals)}` : "";
    return `${currency} ${sign}${whole}${part}`;
  });
}

function search() {
  const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = element("outcome").value;
  const outcomes = wanted === "attention" ? ATTENTION : wanted ? [wanted] : null;
  found = order.filter((row) =>
    (!outcomes || outcomes.includes(rows[row][place.outcome])) &&
    words.every((word) => searchText(row).includes(word)));
  page = 0;
  show();
  element("sums").textContent = found.length < rows.length
    ? ["Sum of what is found:", ...sumsOf(found)].join("  ") : "";
}

function sortKey(column) {
  if (column !== place.amount) return (row) => rows[row][column] ?? "";
  return (row) => Number((rows[row][column] ?? "-1").replaceAll(",", ""));
}

function sort(column) {
  sorted = { column, up: sorted.column === column ? !sorted.up : true };
  const key = sortKey(column);
  const keys = rows.map((_, row) => key(row));
  const sign = sorted.up ? 1 : -1;
  order.sort((a, b) =>
    (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
  heads.forEach((head, each) => head.setAttribute("aria-sort",
    each !== column ? "none" : sorted.up ? "ascending" : "descending"));
  search();
}

function turn(pages) {
  page += pages;
  show();
}

element("search").addEventListener("input", search);
element("outcome").addEventListener("change", search);
element("back").addEventListener("click", () => turn(-1));
element("next").addEventListener("click", () => turn(1));
heads.forEach((head, column) =>
  head.firstChild.addEventListener("click", () => sort(column)));
for (const button of document.querySelectorAll("[data-outcome]")) {
  button.addEventListener("click", () => {
    element("outcome").value = button.dataset.outcome;
    search();
    element("all").scrollIntoView();
  });
}

// Paper has no pages to turn: it gets all that was found, unless that is a book.
addEventListener("beforeprint", () => {
  const fits = found.length <= MOST_ON_PAPER;
  if (fits) show(0, found.length);
  element("paper").textContent = fits
    ? "" : `The first ${ROWS_OF_PAGE} only: --csv has all of them.`;
});
addEventListener("afterprint", () => {
  element("paper").textContent = "";
  show();
});

// The texts to search are made before the first search needs them, in small portions so
// that the page stays responsive.
function prepare(row) {
  const end = Math.min(row + 2000, rows.length);
  for (; row < end; row += 1) searchText(row);
  if (row < rows.length) setTimeout(prepare, 0, row);
}

show();
addEventListener("load", () => setTimeout(prepare, 0, 0));
