// [Task]: T030 [From]: specs/requirements.md
// The page: what is shown, and what the user does. How the task API is called stands in tasks.js.

import {
  Conflict,
  Failure,
  Gone,
  KeyUsed,
  OtherUser,
  SignedOut,
  Tasks,
  fetchToken,
  reach,
} from "./tasks.js";

const $ = (selector, within = document) => within.querySelector(selector);
const KIND = "token-kind";

let apiUrl;
let user = null; // Better Auth's user, while signed in.
let tasks = null; // That user's Tasks.
let addKey = null; // What the form was sent with, until its answer is definite.
let changes = 0; // An answer to a list that was asked for before the last of them is out of date.
let silence; // The timer that takes good news away again.

// Signing up, in and out.

async function callAuth(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await reach(`/api/auth/${path}`, options);
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  throw new Failure(
    response.status < 500 && answer?.message
      ? `${answer.message.replace(/\.$/, "")}.`
      : "Signing in is temporarily unavailable. Try again in a moment.",
  );
}

/** Show what the session's cookie allows: at the start, and whenever that may have changed. */
async function start() {
  apiUrl ??= (await (await reach("/config.json")).json()).apiUrl;
  const session = await callAuth("get-session");
  if (session) await enter(session.user);
  else leave();
}

async function enter(newUser) {
  user = newUser;
  tasks = new Tasks(apiUrl, user.id, () => fetchToken($("[name=kind]:checked").value));
  $("#who").textContent = user.name;
  $("#list").hidden = true;
  show("tasks");
  await list();
}

function leave(view = "sign-in") {
  user = tasks = addKey = null;
  $("#list ul").replaceChildren();
  for (const form of document.querySelectorAll("form")) form.reset();
  show(view);
  $(`#${view} input`).focus();
}

function show(view) {
  for (const id of ["sign-in", "sign-up", "tasks"]) $(`#${id}`).hidden = id !== view;
  for (const id of ["account", "delete-account"]) $(`#${id}`).hidden = view !== "tasks";
}

// The tasks.

async function list() {
  const before = changes;
  const mine = tasks;
  const all = await mine.list();
  if (mine !== tasks) return; // Signed out meanwhile.
  if (before !== changes) return list();
  $("#list ul").replaceChildren(...all.map(item));
  $("#list").hidden = false;
  count();
}

/** A task's <li>, which replaces itself by an editor and back. */
function item(task) {
  const li = $("#task").content.cloneNode(true).firstElementChild;
  const box = $("input", li);
  const draw = () => {
    li.classList.toggle("completed", task.completed);
    box.checked = task.completed;
    $(".title", li).textContent = task.title;
    $(".description", li).textContent = task.description ?? "";
    $(".edit", li).ariaLabel = `Edit ${task.title}`;
    $(".delete", li).ariaLabel = `Delete ${task.title}`;
  };
  $("time", li).dateTime = task.created_at;
  $("time", li).textContent = new Date(task.created_at).toLocaleString(undefined, {
    dateStyle: "medium",
    timeStyle: "short",
  });
  draw();

  box.addEventListener("change", async () => {
    await attempt(box, async () => {
      task = await unlessGone(li, tasks.complete(task.id, box.checked));
      tell(task.completed ? `Completed “${task.title}”.` : `“${task.title}” is open again.`);
    });
    draw(); // What the service says, whatever was clicked.
    listChanged();
  });
  $(".edit", li).addEventListener("click", () => {
    tell("");
    const form = editor(task);
    li.replaceWith(form);
    $("input", form).select();
  });
  $(".delete", li).addEventListener("click", () => {
    if (!confirm(`Delete “${task.title}”? It can’t be brought back.`)) return;
    attempt(li, async () => {
      await tasks.delete(task.id);
      drop(li);
      tell(`Deleted “${task.title}”.`);
    });
  });
  return li;
}

/** The answer about a task, whose row is dropped if the task is gone. */
async function unlessGone(li, answer) {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof Gone) drop(li);
    throw error;
  }
}

function drop(li) {
  li.remove();
  listChanged();
  $("#list-heading").focus();
}

function editor(task) {
  const li = $("#editor").content.cloneNode(true).firstElementChild;
  const form = $("form", li);
  const close = (newTask) => {
    const shown = item(newTask);
    li.replaceWith(shown);
    listChanged();
    $(".edit", shown).focus();
  };
  const inputs = ["title", "description"].map((name) => form.elements[name]);
  for (const input of inputs) input.value = task[input.name] ?? "";
  onSubmit(form, async (fields) => {
    const edited = inputs.filter((input) => input.value !== shownIn(input, task));
    const all = withoutBlank(fields);
    const changes = Object.fromEntries(edited.map(({ name }) => [name, all[name]]));
    try {
      const saved = await unlessGone(li, tasks.edit(task, changes));
      close(saved);
      tell(`Saved “${saved.title}”.`);
    } catch (error) {
      if (error instanceof Conflict) offerChoice(error.current, changes);
      if (!(error instanceof Gone)) throw error;
      for (const { name, value } of inputs) $("#add").elements[name].value ||= value;
      throw new Gone("This task was deleted elsewhere. What you typed is in the form above.");
    }
  });
  /** From here on, saving replaces what the task is now; nothing that the user typed is lost. */
  const offerChoice = (current, changes) => {
    task = current;
    for (const input of inputs) if (!(input.name in changes)) input.value = current[input.name] ?? "";
    $(".theirs-title", li).textContent = current.title;
    $(".theirs-description", li).textContent = current.description ?? "";
    $(".conflict", li).hidden = false;
    $(".save", li).textContent = "Save mine";
    $(".conflict", li).scrollIntoView({ block: "center" }); // Above the message.
  };
  $(".theirs", li).addEventListener("click", () => {
    close(task);
    tell(`Kept “${task.title}”.`);
  });
  const cancel = () => form.ariaBusy === "true" || close(task);
  $(".cancel", li).addEventListener("click", cancel);
  li.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
  });
  return li;
}

/** A task's field as its input shows it, which may not keep every line break. */
function shownIn(input, task) {
  return Object.assign(input.cloneNode(), { value: task[input.name] ?? "" }).value;
}

/** What the service makes of a form: no white space around the title, no empty description. */
function withoutBlank({ title, description }) {
  return { title: title.trim(), description: description || null };
}

function count() {
  const all = document.querySelectorAll("#list li").length;
  const done = document.querySelectorAll("#list .completed").length;
  $("#count").textContent = all ? `${done} of ${all} done` : "";
  $("#empty").hidden = all > 0;
}

function listChanged() {
  changes++;
  count();
}

// What the user does, and what becomes of it.

/** Run what a click or a submit asks for, once at a time; a failure is told, never thrown. */
async function attempt(element, action) {
  if (element.ariaBusy === "true") return;
  element.ariaBusy = "true";
  tell("");
  try {
    await action();
  } catch (error) {
    if (error instanceof SignedOut) leave();
    if (error instanceof OtherUser) location.reload();
    if (!(error instanceof Failure)) console.error(error);
    tell(error instanceof Failure ? error.message : "That went wrong. Reload the page.", true);
    // Without a list there is nothing else to click.
    if (user ? $("#list").hidden : $("#sign-in").hidden && $("#sign-up").hidden) offerRetry();
  } finally {
    element.ariaBusy = "false";
  }
}

function onSubmit(form, action) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(form, () => action(Object.fromEntries(new FormData(form))));
  });
}

function tell(text, isError = false) {
  clearTimeout(silence);
  $("#message").textContent = text;
  $("#message").classList.toggle("error", isError);
  if (!isError) silence = setTimeout(tell, 8000, "");
}

function offerRetry() {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Try again";
  button.addEventListener("click", () => attempt(document.body, start));
  $("#message").append(" ", button);
}

onSubmit($("#sign-in form"), async (fields) => {
  await callAuth("sign-in/email", fields);
  await start();
  $("#add input").focus();
});

onSubmit($("#sign-up form"), async (fields) => {
  await callAuth("sign-up/email", fields);
  await start();
  tell(`Welcome, ${user.name}.`);
  $("#add input").focus();
});

onSubmit($("#add"), async (fields) => {
  addKey ??= crypto.randomUUID();
  let added;
  try {
    added = await tasks.add(withoutBlank(fields), addKey);
  } catch (error) {
    if (error.isDefinite) addKey = null;
    if (!(error instanceof KeyUsed)) throw error;
    await list();
    throw new Failure("The task is in the list as you first sent it. Add this one, too?");
  }
  const { task, replayed } = added;
  addKey = null;
  $("#add").reset();
  // What an earlier request added may be listed already, and changed since. Or there is no list yet.
  if (replayed || $("#list").hidden) await list();
  else $("#list ul").prepend(item(task));
  listChanged();
  $("#add input").focus();
  tell(`Added “${task.title}”.`);
});

$("#sign-out").addEventListener("click", (event) =>
  attempt(event.target, async () => {
    await callAuth("sign-out", {});
    leave();
    tell("You are signed out.");
  }),
);

$("#delete-account").addEventListener("click", (event) => {
  if (!confirm("Delete your account and all your tasks? They can’t be brought back.")) return;
  attempt(event.target, async () => {
    await callAuth("delete-user", {});
    leave("sign-up");
    tell("Your account and your tasks are deleted.");
  });
});

$("#to-sign-up").addEventListener("click", () => leave("sign-up"));
$("#to-sign-in").addEventListener("click", () => leave("sign-in"));

$("#settings").addEventListener("change", (event) => {
  localStorage.setItem(KIND, event.target.value);
  if (user) attempt(event.currentTarget, () => enter(user));
});
const kind = document.querySelector(`[name=kind][value="${localStorage.getItem(KIND)}"]`);
if (kind) kind.checked = true;

attempt(document.body, start);
