// [Task]: T101 [From]: specs/requirements.md
// The recipes of docs/frontend.md, used as by a page: node recipes.js USER_ID TOKEN

import {
  InfiniteQueryObserver,
  MutationObserver,
  QueryClient,
  QueryObserver,
  dehydrate,
  focusManager,
  hydrate,
  onlineManager,
  useInfiniteQuery,
  useMutation,
  useQuery,
} from "@tanstack/react-query";
import { ApiError, api, json, tasksOf } from "./lib/api";
import { taskList } from "./lib/list";
import { type NewTask, setUpQueue } from "./lib/queue";
import { Conflict, deleteTask, saveTask } from "./lib/save";
import { type Task, completeTask, taskPages } from "./lib/tasks";

declare global {
  var process: { argv: string[]; env: Record<string, string | undefined> };
}
const [, , user = "", token = ""] = process.argv;

/** What a component has: it compiles, which shows that the options suit the hooks. */
export function useTasks(client: QueryClient) {
  return [
    useInfiniteQuery(taskPages(user)),
    useMutation(completeTask(user, client)),
    useMutation<Response, Error, NewTask>({ mutationKey: ["add-task"] }),
    useQuery(taskList(user)),
  ];
}

const realFetch = globalThis.fetch;
const tokens = ["refused", token];
let losing = ""; // The method whose next answer is lost.
let refusing = ""; // The method whose next request is answered by a proxy.
const seen: string[] = [];
globalThis.fetch = async (url, init) => {
  if (url === "/api/auth/token") return Response.json({ token: tokens.shift() });
  const method = init?.method ?? "GET";
  if (refusing === method) {
    refusing = "";
    await new Promise((resolve) => setTimeout(resolve, 100));
    return Response.json({ detail: "Bad Gateway" }, { status: 502 });
  }
  const response = await realFetch(url, init);
  seen.push(`${method} ${response.status}`);
  if (losing !== method) return response;
  losing = "";
  throw new TypeError("Failed to fetch");
};

const titles = async () =>
  ((await (await api(`${tasksOf(user)}?sort=title&order=asc`)).json()) as Task[]).map((t) => t.title);

async function until(isSo: () => unknown) {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 5));
}

async function main() {
  const client = new QueryClient({ defaultOptions: { queries: { retry: false } } });
  setUpQueue(client);
  client.mount();

  await Promise.all([1, 2].map(() => api(tasksOf(user))));
  console.log(`token: ${seen.sort()}, fetched ${2 - tokens.length}`);

  onlineManager.setOnline(false);
  const task: NewTask = { user, key: crypto.randomUUID(), title: "Buy milk" };
  void new MutationObserver<Response, Error, NewTask>(client, { mutationKey: ["add-task"] }).mutate(task);
  await until(() => client.getMutationCache().getAll()[0]?.state.isPaused);
  const stored = JSON.stringify(dehydrate(client));
  client.clear();
  const reloaded = new QueryClient();
  setUpQueue(reloaded);
  reloaded.mount();
  hydrate(reloaded, JSON.parse(stored));
  losing = "POST";
  onlineManager.setOnline(true);
  await reloaded.resumePausedMutations();
  await until(() => reloaded.getMutationCache().getAll()[0]?.state.status === "success");
  console.log(`queue: ${await titles()}, ${seen.filter((line) => line.startsWith("POST"))}`);
  reloaded.unmount();

  for (let n = 10; n < 60; n++) await api(tasksOf(user), json("POST", { title: `Task ${n}` }));
  const pages = new InfiniteQueryObserver(client, taskPages(user));
  const stop = pages.subscribe(() => undefined);
  await until(() => pages.getCurrentResult().isSuccess);
  await pages.fetchNextPage();
  const { data, hasNextPage } = pages.getCurrentResult();
  console.log(`pages: ${data?.pages.map((page) => page.tasks.length)}, more ${hasNextPage}`);

  const newest = data?.pages[0]?.tasks[0] as Task;
  const shown = () => pages.getCurrentResult().data?.pages[0]?.tasks[0]?.completed;
  const complete = new MutationObserver(client, completeTask(user, client));
  const completing = complete.mutate({ id: newest.id, completed: true });
  await until(shown);
  console.log(`optimistic: pending ${complete.getCurrentResult().isPending}`);
  await completing;
  refusing = "PATCH";
  const failing = complete.mutate({ id: newest.id, completed: false }).catch((error) => error.status);
  await until(() => shown() === false);
  console.log(`rolled back: ${await failing}, completed ${shown()}`);
  stop();

  losing = "PUT";
  const save = () => saveTask(user, newest, { title: "Renamed" });
  const lost = await save().catch((error) => error.name);
  console.log(`saved after ${lost}: ${(await save()).title}`);
  const conflict = await saveTask(user, newest, { title: "Mine" }).catch((error) => error);
  console.log(`conflict: ${conflict instanceof Conflict && conflict.current.title}`);
  losing = "DELETE";
  await deleteTask(user, newest.id).catch(() => deleteTask(user, newest.id));
  const gone = await save().catch((error) => error);
  console.log(`deleted: ${gone instanceof ApiError && gone.status}`);

  const list = new QueryObserver(client, taskList(user));
  const end = list.subscribe(() => undefined);
  await until(() => list.getCurrentResult().isSuccess);
  seen.length = 0;
  for (const isFocused of [false, true]) focusManager.setFocused(isFocused);
  await until(() => seen.length && !list.getCurrentResult().isFetching);
  console.log(`on focus: ${seen}, still ${list.getCurrentResult().data?.tasks.length}`);
  end();
  client.clear();
  client.unmount();
}

void main();
