// Labels of pictures: saved after each change, and shown as thumbnails, boxes and classes.

import { Editor, colourOf } from "/editor.js";
import { $, ask, attempt, notice, state } from "/state.js";

let asked = 0; // pictures asked for; an answer that comes late is left out

// ---- saving: each picture has at most one save under way; what changed meanwhile is saved after it

export async function save(picture) {
  picture.unsaved = true;
  if (picture.isSaving) return;
  picture.isSaving = true;
  showSaved();
  while (picture.unsaved) {
    picture.unsaved = false;
    const boxes = picture.labelled ? picture.boxes : null;
    try {
      const labels = await ask(`/api/labels/${picture.id}`, { boxes, revision: picture.revision });
      picture.revision = labels.revision;
      listed(picture.id, labels);
      state.used = [...new Set([...state.used, ...labels.boxes.map(({ name }) => name)])];
    } catch (error) {
      if (error.status === 409) {
        const known = new Set(error.content.labels.boxes.map((one) => JSON.stringify(one)));
        const mine = picture.boxes.filter(({ name, box }) => !known.has(JSON.stringify({ name, box })));
        picture.proposals = mine.map((one) => ({ ...one, score: null }));
        take(picture, error.content.labels);
        notice(error.message + (mine.length ? " What you drew is dashed; click it to accept it." : ""));
      } else if (error.status === undefined || error.status === 403) {
        picture.unsaved = true; // the server is away, or was started anew with another token: try again until it answers
        if (error.status) notice(error.message);
        showSaved(error.status ? "the token is missing" : "the server does not answer");
        await new Promise((done) => setTimeout(done, 2000));
        continue;
      } else {
        notice(`Not saved: ${error.message}`);
        take(picture, await ask(`/api/labels/${picture.id}`));
      }
    }
  }
  picture.isSaving = false;
  showSaved();
  showControls();
}

export function showSaved(problem = "") {
  const open = [...state.opened.values()].some((picture) => picture.isSaving || picture.unsaved);
  $("saved").className = problem ? "bad" : "";
  $("saved").textContent = problem ? `not saved: ${problem}` : open ? "saving …" : "all saved";
}

addEventListener("beforeunload", (event) => {
  if ([...state.opened.values()].some((picture) => picture.unsaved)) event.preventDefault();
});

// Take what the server says about a picture.
export function take(picture, labels) {
  Object.assign(picture, { boxes: labels.boxes, labelled: labels.labelled, revision: labels.revision, history: [] });
  listed(picture.id, labels);
  if (state.current === picture.id) showPicture();
}

function listed(id, labels) {
  const entry = state.pictures.find((one) => one.id === id);
  if (!entry) return;
  Object.assign(entry, { labelled: labels.labelled, boxes: labels.boxes.length });
  dress(entry);
}

function changed(before) {
  const picture = state.opened.get(state.current);
  picture.history.push({ boxes: before, labelled: picture.labelled });
  picture.labelled = true;
  save(picture);
  showControls();
}

// ---- pictures

export const editor = new Editor($("editor"), {
  names: () => state.classes,
  active: () => state.active,
  changed,
  chosen: (advice) => {
    if (advice) notice(advice);
    showControls();
  },
});

export async function open(id) {
  state.current = id;
  const mine = ++asked;
  markCurrent();
  let picture = state.opened.get(id);
  if (!picture?.isSaving && !picture?.unsaved) {
    const known = picture?.revision;
    const labels = await ask(`/api/labels/${id}`);
    picture ??= { id, width: labels.width, height: labels.height, proposals: [], history: [] };
    if (picture.revision === known && !picture.isSaving && !picture.unsaved) { // else changed here since it was asked
      if (known !== labels.revision) picture.history = [];
      Object.assign(picture, { boxes: labels.boxes, labelled: labels.labelled, revision: labels.revision });
    }
    state.opened.set(id, picture);
  }
  if (mine !== asked) return;
  showPicture();
  await state.shown(picture);
}

export function showPicture() {
  const picture = state.opened.get(state.current);
  const entry = state.pictures.find((one) => one.id === state.current);
  $("name").textContent = $("compare-name").textContent = entry.name;
  $("name").title = entry.name;
  editor.show(picture);
  showControls();
}

export function visible() {
  const rules = {
    all: () => true,
    todo: (one) => !one.labelled || one.id === state.current,
    labelled: (one) => one.labelled,
    suggested: (one) => state.suggestions.has(one.id),
  };
  const shown = state.pictures.filter(rules[state.filter]);
  if (state.filter !== "suggested") return shown;
  const order = [...state.suggestions.keys()];
  return shown.sort((one, other) => order.indexOf(one.id) - order.indexOf(other.id));
}

// Thumbnails are asked for when they come near the visible part of the list: a folder may have thousands.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    target.src = target.dataset.src;
  }
}, { root: $("left"), rootMargin: "300px" });

export function showGrid() {
  near.disconnect();
  const shown = visible();
  for (const button of $("filters").children) button.classList.toggle("on", button.dataset.filter === state.filter);
  $("filters").querySelector("[data-filter=suggested]").hidden = !state.suggestions.size;
  $("none").hidden = shown.length > 0;
  $("grid").replaceChildren(...shown.map((entry) => {
    const thumb = document.createElement("button");
    const image = Object.assign(document.createElement("img"), { alt: "", fetchPriority: "low" });
    image.dataset.src = `/thumbnail/${entry.id}`;
    near.observe(image);
    thumb.append(image, Object.assign(document.createElement("span"), { textContent: entry.name }));
    Object.assign(thumb, { className: "thumb", onclick: attempt(() => open(entry.id)) });
    thumb.dataset.id = entry.id;
    entry.thumb = thumb;
    dress(entry);
    return thumb;
  }));
  markCurrent();
}

export function dress(entry) {
  if (!entry.thumb) return;
  entry.thumb.classList.toggle("labelled", entry.labelled);
  entry.thumb.title = [entry.name, state.suggestions.get(entry.id)].filter(Boolean).join("\n");
  entry.thumb.querySelector(".count")?.remove();
  if (entry.labelled) entry.thumb.append(Object.assign(document.createElement("i"), { className: "count", textContent: entry.boxes }));
}

function markCurrent() {
  for (const thumb of $("grid").children) thumb.classList.toggle("current", thumb.dataset.id === state.current);
  $("grid").querySelector(".current")?.scrollIntoView({ block: "nearest" });
}

export function step(by) {
  const shown = visible(), place = shown.findIndex((one) => one.id === state.current);
  const next = shown[place < 0 ? 0 : place + by];
  if (next) attempt(() => open(next.id))();
}

// ---- classes and boxes

function row(name, what, isOn, click, remove) {
  const item = document.createElement("li");
  item.className = isOn ? "on" : "";
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.background = colourOf(state.classes, name);
  item.append(swatch, Object.assign(document.createElement("span"), { className: "what", textContent: what, title: what }));
  item.onclick = click;
  if (remove) {
    const button = Object.assign(document.createElement("button"), { textContent: "×", title: "remove" });
    button.onclick = (event) => {
      event.stopPropagation();
      remove();
    };
    item.append(button);
  }
  return item;
}

export function pick(name, isClick) {
  state.active = name;
  // A click after drawing chooses the class of the next box; it must not rename the one that was just drawn.
  if (isClick && editor.isFresh) editor.choose(null);
  else editor.rename(name);
  showControls();
}

export async function setClasses(names) {
  state.classes = (await ask("/api/classes", { names })).classes;
  if (!state.classes.includes(state.active)) state.active = state.classes[0] ?? null;
  editor.draw();
  showControls();
}

export function showControls() {
  const picture = state.opened.get(state.current), used = new Set(state.used);
  $("classes").replaceChildren(...state.classes.map((name, place) => {
    const others = state.classes.filter((other) => other !== name);
    const item = row(name, name, name === state.active, () => pick(name, true), used.has(name) ? null : attempt(() => setClasses(others)));
    if (place < 9) item.insertBefore(Object.assign(document.createElement("kbd"), { textContent: place + 1 }), item.children[2] ?? null);
    return item;
  }));
  $("boxes").replaceChildren(...(picture?.boxes ?? []).map(({ name, box }, place) =>
    row(name, `${name}  ${Math.round(box[2])} × ${Math.round(box[3])}`, place === editor.choice, () => editor.choose(place), () => editor.remove(place))));
  const proposed = picture?.proposals.length ?? 0;
  $("accept").hidden = $("reject").hidden = !proposed;
  $("accept").textContent = `Accept all (${proposed})`;
  $("undo").disabled = !picture?.history.length;
  $("nothing").disabled = !picture || picture.labelled || proposed > 0;
  $("unlabel").disabled = !picture?.labelled;
  $("hint").textContent = hint(picture, proposed);
}

function hint(picture, proposed) {
  const reason = state.suggestions.get(state.current);
  if (!picture) return "No picture.";
  if (!state.classes.length) return "Start by naming your classes, on the right.";
  if (proposed) return "Dashed boxes are proposals: click one to accept it, or accept all, then correct.";
  if (editor.choice !== null) return "Drag to move, handles to resize, number keys to change the class, Delete to remove.";
  if (reason && !picture.labelled) return `Suggested: ${reason}`;
  return `Drag to draw a box of ${state.active}. Wheel zooms, Shift-drag moves the picture, double click fits it.`;
}
