// Boxes on a picture: draw, move, resize, choose. Coordinates are pixels of the picture: left, top, width, height.

const SVG = "http://www.w3.org/2000/svg";
const LEAST = 3; // screen pixels; a shorter drag is a click
const HANDLES = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]];
const CURSORS = ["nwse", "ns", "nesw", "ew", "nwse", "ns", "nesw", "ew"];
const COLOURS = ["#e6194b", "#1668c7", "#2e8b57", "#e08000", "#8e44ad", "#00a0a8", "#c2185b", "#6d7d00", "#795548", "#5c6bc0"];

export const colourOf = (names, name) => COLOURS[Math.max(0, names.indexOf(name)) % COLOURS.length];

export function element(name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Return the screen pixels per pixel of the picture.
function scaleOf(svg, width, height) {
  const { width: w, height: h } = svg.getBoundingClientRect();
  return Math.min(w / width, h / height) || 1;
}

// Draw a box with a tag of its name; `unit` is a screen pixel in pixels of the picture.
export function drawBox(parent, [x, y, w, h], text, colour, unit, kind, limit) {
  const rect = element("rect", { x, y, width: w, height: h, class: `box ${kind}`, stroke: colour });
  parent.append(rect);
  const size = 12 * unit, top = y >= 1.35 * size ? y - 1.35 * size : y;
  const words = element("text", { y: top + size, fill: "white", style: `font-size:${size}px` }, text);
  parent.append(words);
  const long = words.getComputedTextLength() + 0.6 * size, left = Math.max(0, Math.min(x, limit - long));
  words.setAttribute("x", left + 0.3 * size);
  words.before(element("rect", { x: left, y: top, width: long, height: 1.35 * size, fill: colour, "pointer-events": "none" }));
  return rect;
}

// Show a picture with detections that cannot be changed.
export function showFound(svg, picture, found, least, names) {
  svg.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
  const unit = 1 / scaleOf(svg, picture.width, picture.height);
  svg.replaceChildren(imageOf(picture));
  const shown = found.filter((one) => (least === null ? one.shown : one.score >= least));
  for (const one of shown.slice().reverse()) {
    drawBox(svg, one.box, `${one.name} ${one.score.toFixed(2)}`, colourOf(names, one.name), unit, "found", picture.width);
  }
  return shown.length;
}

function imageOf(picture) {
  return element("image", { href: `/picture/${picture.id}`, width: picture.width, height: picture.height, preserveAspectRatio: "none" });
}

export class Editor {
  // `changed(before)` is called after each change that shall be saved, with the boxes of before; `chosen(advice)` when
  // another box is chosen, or when nothing could be drawn.
  constructor(svg, { names, active, changed, chosen }) {
    Object.assign(this, { svg, names, active, changed, chosen });
    this.picture = null;
    this.choice = null;
    this.isFresh = false; // whether the chosen box was just drawn, and not chosen by a click
    this.drag = null;
    svg.addEventListener("pointerdown", (event) => this.#down(event));
    svg.addEventListener("pointermove", (event) => this.#move(event));
    svg.addEventListener("pointerup", (event) => this.#up(event));
    svg.addEventListener("pointercancel", () => this.#cancel());
    svg.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    svg.addEventListener("dblclick", () => this.fit());
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  // Show `{id, width, height, boxes, proposals}`; it is changed in place.
  show(picture) {
    const isOther = this.picture?.id !== picture?.id;
    this.picture = picture;
    this.drag = null;
    if (isOther || !(this.choice < picture?.boxes.length)) this.choice = null;
    if (isOther) this.fit();
    else this.draw();
  }

  fit() {
    if (this.picture) this.view = [0, 0, this.picture.width, this.picture.height];
    this.draw();
  }

  choose(place) {
    this.choice = place;
    this.isFresh = false;
    this.draw();
    this.chosen();
  }

  remove(place = this.choice) {
    if (place === null) return;
    this.#change(this.picture.boxes.filter((_, other) => other !== place), null);
  }

  rename(name) {
    if (this.choice === null) return;
    this.#change(this.picture.boxes.map((box, place) => (place === this.choice ? { ...box, name } : box)), this.choice);
  }

  nudge(right, down) {
    if (this.choice === null) return;
    const [x, y, w, h] = this.picture.boxes[this.choice].box;
    const before = this.picture.boxes;
    this.#put([x + right, y + down, w, h]);
    this.changed(before);
    this.draw();
  }

  // Take one proposal, or all of them, as boxes.
  accept(place = null) {
    const { boxes, proposals } = this.picture;
    const taken = place === null ? proposals : [proposals[place]];
    this.picture.proposals = proposals.filter((one) => !taken.includes(one));
    const added = taken.map(({ name, box }) => ({ name, box: this.#inside(box) }));
    this.#change([...boxes, ...added], place === null ? null : boxes.length);
  }

  draw() {
    const { picture, svg } = this;
    svg.replaceChildren();
    if (!picture) return;
    svg.setAttribute("viewBox", this.view.join(" "));
    const unit = 1 / scaleOf(svg, this.view[2], this.view[3]), names = this.names();
    svg.append(imageOf(picture));
    picture.proposals.forEach(({ name, box, score }, place) => {
      const text = score === null ? `${name}?` : `${name} ${score.toFixed(2)}?`;
      drawBox(svg, box, text, colourOf(names, name), unit, "proposal", picture.width).dataset.proposal = place;
    });
    picture.boxes.forEach(({ name, box }, place) => {
      if (place !== this.choice) drawBox(svg, box, name, colourOf(names, name), unit, "", picture.width).dataset.place = place;
    });
    if (this.choice === null) return;
    const { name, box } = picture.boxes[this.choice];
    drawBox(svg, box, name, colourOf(names, name), unit, "chosen", picture.width).dataset.place = this.choice;
    HANDLES.forEach(([right, down], number) => {
      const side = 9 * unit, [x, y] = [box[0] + right * box[2] - side / 2, box[1] + down * box[3] - side / 2];
      svg.append(element("rect", { x, y, width: side, height: side, class: "handle", "data-handle": number, style: `cursor:${CURSORS[number]}-resize` }));
    });
  }

  #change(boxes, choice) {
    const before = this.picture.boxes;
    this.picture.boxes = boxes;
    this.choice = choice;
    this.draw();
    this.changed(before);
    this.chosen();
  }

  #at(event) {
    const matrix = this.svg.getScreenCTM().inverse();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return [x, y];
  }

  #inside([x, y, w, h]) {
    const round = (value) => Math.round(100 * value) / 100;
    const clip = (value, most) => Math.min(Math.max(value, 0), most);
    const [left, right] = [clip(x, this.picture.width), clip(x + w, this.picture.width)];
    const [top, bottom] = [clip(y, this.picture.height), clip(y + h, this.picture.height)];
    return [left, top, right - left, bottom - top].map(round);
  }

  // Put the chosen box somewhere, wholly in the picture.
  #put([x, y, w, h]) {
    const { width, height, boxes } = this.picture;
    x = Math.min(Math.max(x, 0), width - w);
    y = Math.min(Math.max(y, 0), height - h);
    this.picture.boxes = boxes.map((one, place) => (place === this.choice ? { ...one, box: this.#inside([x, y, w, h]) } : one));
  }

  #down(event) {
    if (!this.picture) return;
    event.preventDefault();
    this.svg.focus();
    this.svg.setPointerCapture(event.pointerId);
    const at = this.#at(event), { proposal, place, handle } = event.target.dataset;
    const start = { at, x: event.clientX, y: event.clientY, before: this.picture.boxes };
    if (event.button === 1 || event.shiftKey) this.drag = { ...start, kind: "pan", view: this.view };
    else if (event.button !== 0) return;
    else if (handle !== undefined) this.drag = { ...start, kind: "size", handle, box: this.picture.boxes[this.choice].box };
    else if (place !== undefined) {
      this.choose(Number(place));
      this.drag = { ...start, kind: "move", box: this.picture.boxes[this.choice].box };
    } else this.drag = { ...start, kind: "draw", proposal };
  }

  #move(event) {
    const { drag } = this;
    if (!drag || (!drag.isFar && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < LEAST)) return;
    const [x, y] = this.#at(event), [right, down] = [x - drag.at[0], y - drag.at[1]];
    if (drag.kind === "draw" && !drag.isFar) {
      if (!this.active()) {
        this.drag = null;
        return;
      }
      this.picture.boxes = [...drag.before, { name: this.active(), box: [...drag.at, 0, 0] }];
      this.choice = drag.before.length;
    }
    drag.isFar = true;
    if (drag.kind === "pan") this.view = [this.view[0] - right, this.view[1] - down, ...this.view.slice(2)];
    else if (drag.kind === "move") this.#put([drag.box[0] + right, drag.box[1] + down, drag.box[2], drag.box[3]]);
    else {
      const [near, far] = drag.kind === "draw" ? [drag.at, [x, y]] : this.#corners(drag, right, down);
      const [left, top] = [Math.min(near[0], far[0]), Math.min(near[1], far[1])];
      const box = this.#inside([left, top, Math.abs(near[0] - far[0]), Math.abs(near[1] - far[1])]);
      this.picture.boxes = this.picture.boxes.map((one, place) => (place === this.choice ? { ...one, box } : one));
    }
    this.draw();
  }

  // Return two corners of the box whose handle is dragged.
  #corners({ box: [x, y, w, h], handle }, right, down) {
    const [near, far] = [[x, y], [x + w, y + h]], [across, along] = HANDLES[handle];
    if (across === 0) near[0] += right;
    if (across === 1) far[0] += right;
    if (along === 0) near[1] += down;
    if (along === 1) far[1] += down;
    return [near, far];
  }

  #up(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag) {
      if (event.button === 0 && this.picture && !this.active()) this.chosen("Name a class first, on the right.");
      return;
    }
    if (!drag.isFar) {
      if (drag.proposal !== undefined) this.accept(Number(drag.proposal));
      else if (drag.kind === "draw") this.choose(null);
      return;
    }
    if (drag.kind === "pan") return;
    const { box } = this.picture.boxes[this.choice];
    if (Math.min(box[2], box[3]) < 1) this.#restore(drag);
    else {
      this.isFresh = drag.kind === "draw";
      this.changed(drag.before);
      this.draw();
    }
    this.chosen();
  }

  #cancel() {
    if (this.drag?.isFar) this.#restore(this.drag);
    this.drag = null;
  }

  #restore(drag) {
    this.picture.boxes = drag.before;
    this.choice = null;
    this.draw();
  }

  #wheel(event) {
    if (!this.picture) return;
    event.preventDefault();
    const { width, height } = this.picture, [x, y] = this.#at(event);
    const factor = Math.exp(Math.min(Math.max(event.deltaY, -100), 100) / 400);
    const w = Math.min(this.view[2] * factor, width), shrink = w / this.view[2], h = this.view[3] * shrink;
    if (w >= width) this.view = [0, 0, width, height];
    else if (w > 16) this.view = [x - (x - this.view[0]) * shrink, y - (y - this.view[1]) * shrink, w, h];
    this.draw();
  }
}
