"use strict";
// What a mark of a figure stands for, shown where the pointer is; tables that sort; and the replies of
// two cells side by side, with the conversation's evicted tokens marked. Which cells are shown stands
// in the address, so that a view has a link and the browser's way back works.

const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest("figure [data-label]");
  const label = mark && mark.dataset.label;
  tip.hidden = !label;
  if (tip.hidden) return;
  tip.textContent = label.replaceAll("; ", "\n");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
});

// Regions that scroll take the keyboard, others need no tab stop.
function markScrolling() {
  for (const box of document.querySelectorAll(".scroll")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    if (scrolls) {
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", box.dataset.label);
    } else for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  }
}
addEventListener("resize", markScrolling);
document.addEventListener("toggle", markScrolling, true);

// Print holds what is folded: browsers print an element as it is on the screen.
const unfolded = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    unfolded.push(part);
  }
});
addEventListener("afterprint", () => {
  while (unfolded.length) unfolded.pop().open = false;
});

/** The number that a cell begins with, after a rank's or a decision's signs; NaN if it has none. */
function leading(cell) {
  const text = cell.textContent.trim().replaceAll("\u2212", "-").replaceAll(",", "");
  return parseFloat(text.replace(/^[<\[]\s*/, ""));
}

function sortBy(table, column, down) {
  for (const body of table.tBodies) {
    const heads = [...body.rows].filter((row) => row.querySelector("th[scope=rowgroup]"));
    const rows = [...body.rows].filter((row) => !heads.includes(row));
    const key = (row) => row.cells[column];
    const numeric = rows.some((row) => key(row)?.classList.contains("n"));
    const order = (one, other) => {
      if (!numeric) return key(one).textContent.trim().localeCompare(key(other).textContent.trim());
      const [a, b] = [leading(key(one)), leading(key(other))];
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || 0;
      return down ? b - a : a - b;
    };
    rows.sort(order);
    if (down && !numeric) rows.reverse();
    body.append(...heads, ...rows);
  }
  table.classList.add("sorted");
}

/** One tab stop for many buttons: arrow keys go from one to the next. */
function roam(buttons, back, ahead) {
  for (const [place, button] of buttons.entries()) {
    button.tabIndex = place ? -1 : 0;
    button.addEventListener("keydown", (event) => {
      const all = buttons.filter((one) => one.isConnected).sort(
        (one, other) => (one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1));
      const step = { [back]: -1, [ahead]: 1 }[event.key];
      const next = step && all[all.indexOf(button) + step];
      if (!next) return;
      event.preventDefault();
      button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
}

function makeSortable(table) {
  const heads = [...(table.tHead?.rows[0]?.cells ?? [])].filter((head) => head.tagName === "TH");
  const buttons = heads.map((head) => {
    const button = element("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const one of heads) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortBy(table, head.cellIndex, down);
    });
    return button;
  });
  roam(buttons, "ArrowLeft", "ArrowRight");
}

const data = JSON.parse(document.getElementById("cells").textContent);
const title = (run) => data.conversations[run.conversation].title;
const cell = (run) =>
  run.kind === "baseline"
    ? `${run.policy}, nothing evicted`
    : `${run.policy}, ${run.positions} (${run.threshold})` + (run.seed ? `, seed ${run.seed}` : "");
const pick = (id) => document.getElementById(`pick-${id}`);

function fill(select, options, chosen) {
  const kept = chosen ?? select.value;
  select.replaceChildren(...options.map((text) => new Option(text, text)));
  if (options.includes(kept)) select.value = kept;
}

function runsShown() {
  return data.runs.filter((run) => title(run) === pick("conversation").value);
}

function element(name, text, style) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (style) node.className = style;
  return node;
}

/** Share of every token of the conversation that is cached after the turn's evictions. */
function shares(run, turn, count) {
  const turns = Object.keys(run.kept).map(Number).filter((at) => at <= turn);
  if (!turns.length) return new Float32Array(count).fill(1);
  const last = run.kept[Math.max(...turns)];
  const found = new Float32Array(count).fill(1, last.seen);
  for (const [start, stop, share] of last.spans) {
    for (let at = start; at < Math.min(stop, count); at += 1) found[at] = Math.min(1, found[at] + share);
  }
  return found;
}

/** The conversation up to the reply; `del` is what no layer or head holds any more. */
function conversation(run, turn) {
  const { tokens, turns } = data.conversations[run.conversation];
  if (!tokens.length) return element("p", "Not shown: the text could not be cut into the tokens that were fed.");
  const count = turns[turn][0];
  const cached = shares(run, turn, count);
  const box = element("div", undefined, "text");
  box.tabIndex = 0;
  box.dir = "auto";
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", `Conversation before the reply, ${cell(run)}`);
  box.addEventListener("scroll", () => { // the other pane shows the same part
    for (const other of document.querySelectorAll(".sides .text")) {
      if (other !== box && Math.abs(other.scrollTop - box.scrollTop) > 1) other.scrollTop = box.scrollTop;
    }
  });
  for (let start = 0, stop; start < count; start = stop) {
    stop = start + 1;
    while (stop < count && (cached[stop] === 0) === (cached[start] === 0)) stop += 1;
    const text = tokens.slice(start, stop).join("");
    box.append(cached[start] === 0 ? element("del", text) : document.createTextNode(text));
  }
  const gone = cached.reduce((sum, share) => sum + (share === 0), 0);
  const part = element("div");
  part.append(element("p", `${gone} of ${count} tokens before the reply are evicted.`, "small"), box);
  requestAnimationFrame(() => { // to where the evicted text ends
    const last = [...box.querySelectorAll("del")].at(-1) ?? box;
    const below = last.getBoundingClientRect().bottom - box.getBoundingClientRect().top;
    box.scrollTop = below - box.clientHeight / 2;
  });
  return part;
}

function numbers(row) {
  const parts = [
    ["excess NLL", row.excess_nll],
    ["KL to the baseline", row.kl_baseline],
    ["retained", row.retained_share],
    ["phase distortion", row.phase_distortion],
  ];
  return parts.filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`).join(" · ");
}

const LONG = 700;

/** A message of a person or a model; a long one is folded. */
function message(text, style) {
  const quote = element("blockquote", text, style);
  quote.dir = "auto";
  if (text.length <= LONG) return quote;
  const cut = `${text.slice(0, LONG)} …`;
  const part = element("div");
  const button = element("button");
  button.type = "button";
  const fold = (folded) => {
    quote.textContent = folded ? cut : text;
    button.textContent = folded ? `show all ${text.length} characters` : "show less";
    button.setAttribute("aria-expanded", String(!folded));
  };
  button.addEventListener("click", () => fold(button.getAttribute("aria-expanded") === "true"));
  fold(true);
  part.append(quote, button);
  return part;
}

/** The run's recall questions as a list to fold out; nothing if it has none. */
function questions(run) {
  if (!run.questions.length) return [];
  const right = run.questions.filter((row) => row.chosen).length;
  const details = element("details");
  details.append(element("summary", `Recall: ${right} of ${run.questions.length} answers`));
  const list = element("ul", undefined, "questions");
  for (const row of run.questions) {
    const item = element("li");
    const outcome = `${row.chosen ? "✓ likeliest" : "✕ not likeliest"} (margin ${row.margin})`;
    item.append(
      element("span", `${row.depth}, after turn ${row.turn + 1}: `, "small"), element("bdi", row.question), " ",
      element("strong", row.answer), ` ${row.margin === null ? "likelihood not finite" : outcome}`,
    );
    if (row.reply !== null) item.append(element("br"), element("bdi", `“${row.reply.trim()}”`, "small"));
    list.append(item);
  }
  details.append(list);
  return [details];
}

function show(side) {
  const run = runsShown().find((one) => cell(one) === pick(side).value);
  const panel = document.getElementById(`side-${side}`);
  const turn = Number(pick("turn").value) - 1;
  const row = run && run.turns[turn];
  if (!row) return panel.replaceChildren(element("p", "This run has no such turn."));
  const details = element("details", undefined, "cached");
  details.append(element("summary", "What is in its cache"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(conversation(run, turn));
    for (const other of document.querySelectorAll(".sides .cached")) other.open = details.open;
  });
  let reply = row.reply ?? "No reply of its own was generated in this turn.";
  const hasText = row.reply !== null && reply.trim() !== "";
  if (row.reply !== null && !hasText) reply = `${reply.length} characters, nothing but white space.`;
  const folded = questions(run);
  panel.replaceChildren(
    element("h3", cell(run)), element("p", numbers(row), "small"),
    message(reply, hasText ? "" : "small"), details, ...folded,
  );
  return undefined;
}

function refresh() {
  const runs = runsShown();
  const names = runs.map(cell);
  fill(pick("left"), names);
  fill(pick("right"), names);
  const count = Math.max(...runs.map((run) => run.turns.length));
  const spoken = runs[0].turns.map((row, at) => (row.reply === null ? 0 : at + 1));
  const turns = Array.from({ length: count }, (_, at) => String(at + 1));
  fill(pick("turn"), turns, pick("turn").value || String(Math.max(...spoken) || count));
  const row = runs[0].turns[Number(pick("turn").value) - 1] ?? runs[0].turns.at(-1);
  document.getElementById("prompt").replaceChildren(message(row.prompt, ""));
  document.getElementById("reference").replaceChildren(message(row.reference ?? "none", ""));
  show("left");
  show("right");
  const places = VIEW.map(pick);
  document.getElementById("shown").textContent =
    `Turn ${places[1].value} of ${places[0].value}: ${places[2].value} on the left, ${places[3].value} on the right.`;
}

// The address of a view: which conversation and turn, and the cells on both sides.
const VIEW = ["conversation", "turn", "left", "right"];
const START = "#view?";

function address() {
  return START + new URLSearchParams(VIEW.map((name) => [name, pick(name).value]));
}

/** Show what the address names, as far as it is there; false if it names no view. */
function follow(hash) {
  if (!hash.startsWith(START)) return false;
  const wanted = new URLSearchParams(hash.slice(START.length));
  for (const name of VIEW) {
    const value = wanted.get(name);
    if ([...pick(name).options].some((option) => option.value === value)) pick(name).value = value;
    if (name === "conversation" || name === "turn") refresh();
  }
  refresh();
  return true;
}

/** Open the cells side by side: the first on the left, the second, if there is one, on the right. */
function open(cells) {
  const fits = (wanted) => (run) => Object.entries(wanted).every(([key, value]) => run[key] === value);
  const here = data.runs.filter((run) => title(run) === pick("conversation").value);
  const first = here.find(fits(cells[0])) ?? data.runs.find(fits(cells[0]));
  if (!first) return;
  pick("conversation").value = title(first);
  refresh();
  pick("left").value = cell(first);
  const second = cells[1] && runsShown().find(fits(cells[1]));
  if (second) pick("right").value = cell(second);
  refresh();
  history.pushState(null, "", address());
  document.getElementById("return").hidden = false;
  document.getElementById("replies").scrollIntoView();
  pick("left").focus();
}

/** The example that says most: the reply after the turn that lost most, and the same one rerotated. */
function choose() {
  let most = [-Infinity, data.runs[0], 0];
  for (const run of data.runs) {
    run.turns.forEach((row, at) => {
      const loss = row.reply?.trim() ? (row.excess_nll ?? -1) : -Infinity;
      if (loss > most[0]) most = [loss, run, at];
    });
  }
  const [, worst, turn] = most;
  pick("conversation").value = title(worst);
  refresh();
  const other = runsShown().find((run) => run.policy === worst.policy && run.threshold === worst.threshold
    && run.positions === "rerotated");
  pick("turn").value = String(turn + 1);
  pick("left").value = cell(worst);
  pick("right").value = cell(other ?? runsShown()[0]);
  refresh();
}

if (data.runs.length) {
  fill(pick("conversation"), [...new Set(data.runs.map(title))]);
  refresh();
  choose();
  const shownFirst = address();
  follow(location.hash);
  for (const name of VIEW) {
    pick(name).addEventListener("change", () => {
      refresh();
      history.pushState(null, "", address());
    });
  }
  addEventListener("popstate", () => follow(location.hash) || follow(shownFirst));
  for (const button of document.querySelectorAll("button[data-cells]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const from = button;
      open(JSON.parse(button.dataset.cells));
      document.querySelector("#return button").onclick = () => {
        history.back();
        document.getElementById("return").hidden = true;
        from.scrollIntoView({ block: "center" });
        from.focus();
      };
    });
  }
  document.getElementById("chooser").hidden = false;
  if (location.hash.startsWith(START)) document.getElementById("replies").scrollIntoView();
}
for (const table of document.querySelectorAll(".scroll table:not(.unsorted):not(.drawing)")) makeSortable(table);
for (const table of document.querySelectorAll("table")) {
  roam([...table.querySelectorAll("button[data-cells]")], "ArrowUp", "ArrowDown");
}
markScrolling();
