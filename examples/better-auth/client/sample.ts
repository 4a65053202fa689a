// [Task]: T057 [From]: specs/requirements.md
// Every operation of the API, once: node dist/sample.js API_URL USER_ID TOKEN

import { type Task, pages, taskClient, update } from "./client.js";

declare const process: { argv: string[] };
const [apiUrl = "", userId = "", token = ""] = process.argv.slice(2);
const client = taskClient(apiUrl, async () => token);
const user = { path: { user_id: userId } };

const health = await client.GET("/health");
const ready = await client.GET("/health/ready");
console.log(`health ${health.response.status}, ready ${ready.response.status}`);

// Sent twice, as after an answer that was lost, and made once.
const header = { "Idempotency-Key": crypto.randomUUID() };
const made: Task[] = [];
for (let attempt = 1; attempt <= 2; attempt++) {
  const { data, error, response } = await client.POST("/api/{user_id}/tasks", {
    params: { ...user, header },
    body: { title: "Buy milk", description: null },
  });
  if (!data) throw new Error(JSON.stringify(error));
  made.push(data);
  console.log(`POST ${response.status}, replayed ${response.headers.get("Idempotency-Replayed")}`);
}
const [milk] = made;
if (!milk || made[1]?.id !== milk.id) throw new Error("two tasks in place of one");
const task = { path: { user_id: userId, task_id: milk.id } };

for (const title of ["Buy oats", "Buy tea"]) {
  await client.POST("/api/{user_id}/tasks", { params: user, body: { title, completed: true } });
}
for await (const page of pages(client, userId, { limit: 2, sort: "title", order: "asc" })) {
  console.log(`page: ${page.map(({ title }) => title).join(", ")}`);
}
const found = await client.GET("/api/{user_id}/tasks", {
  params: { ...user, query: { completed: false, search: "MILK" } },
});
console.log(`found: ${found.data?.map(({ title }) => title).join(", ")}`);

const read = await client.GET("/api/{user_id}/tasks/{task_id}", { params: task });
const version = read.response.headers.get("ETag") ?? "";
const again = await client.GET("/api/{user_id}/tasks/{task_id}", {
  params: { ...task, header: { "If-None-Match": version } },
});
console.log(`GET ${read.response.status}, then ${again.response.status}`);

const changed = await update(client, userId, milk.id, ({ title }) => ({ title: `${title} today` }));
console.log(`PUT: ${changed.title}`);
const stale = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", {
  params: { ...task, header: { "If-Match": version } },
  body: { completed: true },
});
if (stale.error && "detail" in stale.error) {
  console.log(`PATCH ${stale.response.status}: ${JSON.stringify(stale.error.detail)}`);
}
const completed = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params: task });
console.log(`PATCH: ${completed.data?.completed}`);

const refused = await client.POST("/api/{user_id}/tasks", { params: user, body: { title: " " } });
if (refused.error && Array.isArray(refused.error.detail)) {
  console.log(`POST ${refused.response.status}: ${refused.error.detail.map(({ msg }) => msg)}`);
}

const deleted = await client.DELETE("/api/{user_id}/tasks/{task_id}", { params: task });
const gone = await client.DELETE("/api/{user_id}/tasks/{task_id}", { params: task });
console.log(`DELETE ${deleted.response.status}, then ${gone.response.status}`);
