// What all parts of the page share: its state, requests, messages.

export const $ = (id) => document.getElementById(id);
export const state = {
  pictures: [], classes: [], used: [], adapters: [], suggestions: new Map(), filter: "all", current: null, active: null,
  opened: new Map(), // id → {id, width, height, boxes, proposals, labelled, revision, history, unsaved}
  job: 0, view: "label", least: null, found: null,
  shown: () => {}, // called when another picture is shown
};

// Send a request; return its JSON. An error has the message of the server, its status and its answer.
export async function ask(path, body) {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const options = text === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: text, keepalive: text.length < 30000 };
  const answer = await fetch(path, options);
  const told = await answer.text(), isJson = answer.headers.get("content-type")?.startsWith("application/json");
  const content = isJson ? JSON.parse(told) : { error: told || `${answer.status} ${answer.statusText}` };
  if (!answer.ok) throw Object.assign(new Error(content.error), { status: answer.status, content });
  return content;
}

export function notice(text, isGood = false, link) {
  $("notice").hidden = !text;
  $("notice").className = isGood ? "good" : "";
  const span = $("notice").firstElementChild;
  span.textContent = text;
  if (link) span.append(" ", Object.assign(document.createElement("a"), { textContent: link.text, href: link.href, target: "_blank" }));
}

export const attempt = (task) => async (event) => {
  event?.preventDefault();
  try {
    await task(event);
  } catch (error) {
    notice(error.message);
  }
};
