"use strict";
// Two things: what a mark of a figure stands for, shown where the pointer is; and the replies of two
// cells side by side, with the conversation's evicted tokens marked.

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
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", `Conversation before the reply, ${cell(run)}`);
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
      element("span", `${row.depth}, after turn ${row.turn + 1}: `, "small"), row.question, " ",
      element("strong", row.answer), ` ${row.margin === null ? "likelihood not finite" : outcome}`,
    );
    if (row.reply !== null) item.append(element("br"), element("span", `“${row.reply.trim()}”`, "small"));
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
  const details = element("details");
  details.append(element("summary", "What is in its cache"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(conversation(run, turn));
  });
  let reply = row.reply ?? "No reply of its own was generated in this turn.";
  const hasText = row.reply !== null && reply.trim() !== "";
  if (row.reply !== null && !hasText) reply = `${reply.length} characters, nothing but white space.`;
  const folded = questions(run);
  panel.replaceChildren(
    element("h3", cell(run)), element("p", numbers(row), "small"),
    element("blockquote", reply, hasText ? "" : "small"), details, ...folded,
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
  document.getElementById("prompt").textContent = row.prompt;
  document.getElementById("reference").textContent = row.reference ?? "none";
  show("left");
  show("right");
}

function open(wanted) {
  const fits = (run) => Object.entries(wanted).every(([key, value]) => run[key] === value);
  const run = data.runs.find((one) => fits(one) && title(one) === pick("conversation").value) ?? data.runs.find(fits);
  if (!run) return;
  pick("conversation").value = title(run);
  refresh();
  pick("left").value = cell(run);
  show("left");
  document.getElementById("replies").scrollIntoView();
  pick("left").focus();
}

if (data.runs.length) {
  fill(pick("conversation"), [...new Set(data.runs.map(title))]);
  refresh();
  const losses = runsShown().map((run) => [run.turns.at(-1).excess_nll ?? -1, run]);
  const worst = losses.reduce((most, one) => (one[0] > most[0] ? one : most))[1];
  const other = runsShown().find((run) => run.policy === worst.policy && run.positions === "rerotated");
  pick("left").value = cell(worst);
  pick("right").value = cell(other ?? runsShown()[0]);
  refresh();
  for (const id of ["conversation", "turn", "left", "right"]) pick(id).addEventListener("change", refresh);
  for (const button of document.querySelectorAll("button[data-cell]")) {
    button.hidden = false;
    button.addEventListener("click", () => open(JSON.parse(button.dataset.cell)));
  }
  document.getElementById("chooser").hidden = false;
}
