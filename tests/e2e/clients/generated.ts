// [Task]: T100 [From]: specs/requirements.md
// The client that @hey-api/openapi-ts generates, which checks every request and answer with zod:
// node hey.js API_URL USER_ID TOKEN

import { client } from "./client/client.gen.js";
import { createTask, deleteTask, listTasks, updateTask } from "./client/sdk.gen.js";

declare const process: { argv: string[] };
const [baseUrl, user_id = "", token = ""] = process.argv.slice(2);
client.setConfig({ baseUrl, auth: token });
const user = { user_id };

// White space around the longest title: the service strips it, so that a client must let it pass.
const created = await createTask({ path: user, body: { title: `  ${"x".repeat(200)}\n` } });
if (!created.data) throw new Error(JSON.stringify(created.error));
console.log(`created ${created.response.status} ${created.data.title.length}`);
await createTask({ path: user, body: { title: "Buy tea", description: null } });

const first = await listTasks({ path: user, query: { limit: 1 } });
const cursor = first.response.headers.get("X-Next-Cursor") ?? "";
const second = await listTasks({ path: user, query: { limit: 1, cursor } });
console.log(`pages ${first.data?.length} ${second.data?.length} ${second.data?.[0]?.id === created.data.id}`);

const task = { ...user, task_id: created.data.id };
const headers = { "If-Match": created.response.headers.get("ETag") ?? "" };
const changed = await updateTask({ path: task, headers, body: { title: "Buy oats" } });
console.log(`updated ${changed.response.status} ${changed.data?.title}`);
const stale = await updateTask({ path: task, headers, body: { completed: true } });
console.log(`stale ${stale.response.status} ${JSON.stringify(stale.error)}`);

const refused = await createTask({ path: user, body: { title: " " } });
console.log(`refused ${refused.response.status} ${JSON.stringify(refused.error)}`);

const deleted = await deleteTask({ path: task });
const gone = await deleteTask({ path: task });
console.log(`deleted ${deleted.response.status} ${gone.response.status}`);
