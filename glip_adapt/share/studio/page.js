// The page of the studio: pictures of a folder, their labels, and what a detector does with them.
// All text of files reaches the page as text, never as HTML.

import { showFound } from "/editor.js";
import { dress, editor, open, pick, save, setClasses, showControls, showGrid, showPicture, showSaved, step, take, visible } from "/labelling.js";
import { $, ask, attempt, notice, state } from "/state.js";

// ---- what the detector does

async function find() {
  const picture = state.opened.get(state.current);
  $("find").disabled = true;
  try {
    const { found } = await ask(`/api/find/${picture.id}`, { names: state.classes, adapter: $("by").value });
    const covers = (box) => picture.boxes.some((one) => overlap(one.box, box) > 0.5);
    picture.proposals = found.filter((one) => one.shown && !covers(one.box));
    if (!picture.proposals.length && state.current === picture.id) {
      notice(found.length ? "Nothing new is found that is sure enough. Draw the boxes by hand." : "Nothing is found. Draw the boxes by hand.");
    } else notice("");
  } finally {
    $("find").disabled = false;
  }
  if (state.current === picture.id) showPicture();
}

function overlap([x, y, w, h], [x2, y2, w2, h2]) {
  const shared = Math.max(0, Math.min(x + w, x2 + w2) - Math.max(x, x2)) * Math.max(0, Math.min(y + h, y2 + h2) - Math.max(y, y2));
  return shared / (w * h + w2 * h2 - shared);
}

async function compare() {
  const id = state.current, adapter = $("adapter").value;
  for (const side of ["before", "after"]) $(`${side}-count`).textContent = "…";
  state.found = { id, ...(await ask(`/api/compare/${id}`, { adapter })) };
  if (state.current === id) showFoundOnes();
}

function showFoundOnes() {
  if (state.found?.id !== state.current) return;
  const picture = state.opened.get(state.current);
  for (const side of ["before", "after"]) {
    const count = showFound($(side), picture, state.found[side], state.least, state.classes);
    $(`${side}-count`).textContent = `${count} ${count === 1 ? "box" : "boxes"}`;
  }
  $("least-value").textContent = state.least === null ? "own" : state.least.toFixed(2);
}

function show(view) {
  state.view = view;
  $("label-view").hidden = view !== "label";
  $("compare-view").hidden = view !== "compare";
  $("tab-label").classList.toggle("on", view === "label");
  $("tab-compare").classList.toggle("on", view === "compare");
  if (view === "compare") attempt(compare)();
  else editor.draw();
}

function showAdapters() {
  for (const [select, first] of [[$("by"), ["names alone", ""]], [$("adapter"), null]]) {
    const entries = [...(first ? [first] : []), ...state.adapters.map(({ name }) => [name, name])];
    const before = select.value;
    select.replaceChildren(...entries.map(([text, value]) => new Option(text, value)));
    if (entries.some(([, value]) => value === before)) select.value = before;
  }
  $("tab-compare").disabled = !state.adapters.length;
  $("tab-compare").title = state.adapters.length ? "" : "Adapt first";
  $("adapters").replaceChildren(...state.adapters.slice(0, 3).map(({ name, report, path }) => {
    const made = document.createElement("div");
    made.append(Object.assign(document.createElement("b"), { textContent: name }));
    if (report) made.append(" · ", Object.assign(document.createElement("a"), { textContent: "what to expect", href: `/report/${name}`, target: "_blank" }));
    const quoted = /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
    made.append(Object.assign(document.createElement("code"), { textContent: `glip-adapt detect IMAGES --adapter ${quoted}` }));
    return made;
  }));
}

const percent = (value) => (value === null ? "unknown" : (100 * value).toFixed(0));

// Show the job of the server, and ask again while it runs.
async function watch() {
  let job = null;
  try {
    ({ job } = await ask("/api/job"));
  } catch {
    // the server is away; saving tells
  }
  if (job) {
    const isRunning = job.state === "running";
    $("job").hidden = !isRunning;
    $("job-message").textContent = job.stopping ? "stopping after this step …" : job.message;
    if (job.total) Object.assign($("job-bar"), { max: job.total, value: job.done });
    else $("job-bar").removeAttribute("value");
    $("stop").hidden = job.kind === "load";
    $("stop").disabled = job.stopping;
    drawCurve(job.losses);
    for (const id of ["adapt", "suggest", "find"]) $(id).disabled = isRunning;
    if (isRunning) state.job = job.number;
    else if (state.job === job.number) {
      state.job = 0;
      await finished(job);
    }
  }
  setTimeout(watch, job?.state === "running" ? 400 : 2000);
}

function drawCurve(losses) {
  $("job-curve").style.visibility = losses.length > 1 ? "visible" : "hidden";
  const most = Math.max(...losses, 1e-9);
  const points = losses.map((loss, place) => `${(120 * place) / Math.max(1, losses.length - 1)},${23 - (22 * loss) / most}`);
  $("job-curve").firstElementChild.setAttribute("points", points.join(" "));
}

async function finished(job) {
  await refresh();
  if (job.state !== "done") return notice(job.message);
  if (job.kind === "adapt") {
    const { adapter, method, expected_ap: ap, zero_shot_ap: before, kept_start: kept } = job.result;
    $("by").value = $("adapter").value = adapter;
    const what = kept ? "Training did not help on held-out pictures, so it detects as before." : `AP to expect on new pictures: ${percent(ap)}, by the names alone ${percent(before)}.`;
    notice(`${adapter} is saved (${method}). ${what}`, true, { text: "More", href: `/report/${adapter}` });
    show("compare");
  } else if (job.kind === "suggest") {
    state.suggestions = new Map(job.result.map(({ id, reason }) => [id, reason]));
    state.filter = "suggested";
    showGrid();
    show("label");
    if (job.result.length) await open(job.result[0].id);
  }
}

// ---- start, and what changes from outside

async function refresh() {
  const folder = await ask("/api/folder");
  const before = JSON.stringify(state.pictures.map(({ id }) => id));
  Object.assign(state, { classes: folder.classes, used: folder.used, adapters: folder.adapters });
  if (JSON.stringify(folder.pictures.map(({ id }) => id)) === before) {
    folder.pictures.forEach((entry, place) => dress(Object.assign(state.pictures[place], entry)));
  } else {
    state.pictures = folder.pictures;
    showGrid();
  }
  state.active ??= state.classes[0] ?? null;
  $("folder").textContent = `${folder.folder} · ${folder.format}${folder.trunk ? ` · ${folder.trunk}` : ""}`;
  if (!$("method").options.length) $("method").replaceChildren(...folder.methods.map((name) => new Option(name, name)));
  showAdapters();
  showControls();
}

state.shown = async (picture) => {
  if (state.view === "compare") await compare();
  else if ($("auto-find").checked && !picture.labelled && !picture.proposals.length) await find();
};

async function start() {
  await refresh();
  showGrid();
  showSaved();
  watch();
  const first = state.pictures.find(({ id }) => id === location.hash.slice(1)) ?? visible()[0];
  if (first) await open(first.id);
  else notice("There is no picture in this folder. Copy some into it, and load the page again.");
}

addEventListener("focus", attempt(async () => {
  await refresh();
  const picture = state.opened.get(state.current);
  if (!picture || picture.isSaving || picture.unsaved || editor.drag) return;
  const { revision } = picture;
  const labels = await ask(`/api/labels/${picture.id}`);
  if (picture.isSaving || picture.unsaved || picture.revision !== revision) return; // changed here since it was asked
  if (labels.revision !== revision) take(picture, labels); // another page has changed it
}));

$("filters").onclick = (event) => {
  if (!event.target.dataset.filter) return;
  state.filter = event.target.dataset.filter;
  showGrid();
};
$("add-class").onsubmit = attempt(async () => {
  const names = $("class-names").value.split(",").map((name) => name.trim()).filter(Boolean);
  await setClasses([...state.classes, ...names]);
  if (names.length) state.active = names[0];
  $("class-names").value = "";
  showControls();
});
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("find").onclick = attempt(find);
$("accept").onclick = () => editor.accept();
$("reject").onclick = () => {
  state.opened.get(state.current).proposals = [];
  showPicture();
};
function undo() {
  const picture = state.opened.get(state.current);
  if (!picture?.history.length) return;
  Object.assign(picture, picture.history.pop());
  save(picture);
  showPicture();
}
function label(labelled) {
  const picture = state.opened.get(state.current);
  picture.history.push({ boxes: picture.boxes, labelled: picture.labelled });
  Object.assign(picture, { boxes: [], labelled });
  save(picture);
  showPicture();
}
$("undo").onclick = undo;
$("nothing").onclick = () => label(true);
$("unlabel").onclick = () => label(false);
$("notice").lastElementChild.onclick = () => notice("");
$("tab-label").onclick = () => show("label");
$("tab-compare").onclick = () => show("compare");
$("adapter").onchange = attempt(compare);
$("least").oninput = () => {
  state.least = Number($("least").value);
  showFoundOnes();
};
$("least-own").onclick = () => {
  state.least = null;
  showFoundOnes();
};
$("stop").onclick = attempt(() => ask("/api/stop", {}));
$("adapting").onsubmit = attempt(async () => {
  const minutes = $("minutes").value ? Number($("minutes").value) : null;
  const { job } = await ask("/api/adapt", { method: $("method").value, minutes });
  state.job = job.number;
  notice("");
});
$("suggesting").onsubmit = attempt(async () => {
  const { job } = await ask("/api/suggest", { count: Number($("count").value), names: state.classes, adapter: $("by").value });
  state.job = job.number;
  notice("");
});
addEventListener("resize", () => state.view === "compare" && showFoundOnes());

addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || state.view !== "label" || event.altKey) return;
  if (event.ctrlKey || event.metaKey) {
    if (event.key !== "z") return;
    event.preventDefault();
    return undo();
  }
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in arrows) {
    const [right, down] = arrows[event.key], far = event.shiftKey ? 10 : 1;
    if (editor.choice !== null) editor.nudge(far * right, far * down);
    else step(right + down);
  } else if (event.key === "Delete" || event.key === "Backspace") editor.remove();
  else if (event.key === "Escape") editor.choose(null);
  else if (event.key === "Enter" && !event.target.closest("button") && state.opened.get(state.current)?.proposals.length) editor.accept();
  else if (event.key === "f") attempt(find)();
  else if (event.key >= "1" && event.key <= "9" && state.classes[event.key - 1]) pick(state.classes[event.key - 1]);
  else return;
  event.preventDefault();
});

history.replaceState(null, "", location.pathname); // the token, which a cookie keeps by now, shall not be seen
attempt(start)();
