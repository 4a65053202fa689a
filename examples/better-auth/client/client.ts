// [Task]: T057 [From]: specs/requirements.md
// A typed client of the task API. api.d.ts is made from its OpenAPI document: `make client`.

import createClient, { type Client } from "openapi-fetch";
import type { components, operations, paths } from "./api.js";

export type Task = components["schemas"]["TaskPublic"];
export type NewTask = components["schemas"]["TaskCreate"];
export type Changes = components["schemas"]["TaskUpdate"];
export type Query = NonNullable<operations["list_tasks"]["parameters"]["query"]>;

/** Every operation of the API, with its types; `token` is asked for one before each request. */
export function taskClient(apiUrl: string, token: () => Promise<string>): Client<paths> {
  const client = createClient<paths>({ baseUrl: apiUrl });
  client.use({
    async onRequest({ request }) {
      request.headers.set("Authorization", `Bearer ${await token()}`);
      return request;
    },
  });
  return client;
}

/** The pages of a list, one after the other, each of `limit` tasks at most. */
export async function* pages(
  client: Client<paths>,
  userId: string,
  query: Query & { limit: number },
): AsyncGenerator<Task[]> {
  let next: Query = query;
  for (;;) {
    const { data, response } = await client.GET("/api/{user_id}/tasks", {
      params: { path: { user_id: userId }, query: next },
    });
    if (!data) throw new Error(`The list can't be had: ${response.status}`);
    yield data;
    const cursor = response.headers.get("X-Next-Cursor");
    if (!cursor) return;
    next = { ...query, cursor };
  }
}

/** Change a task as it is now; `change` is asked again when somebody else was faster. */
export async function update(
  client: Client<paths>,
  userId: string,
  taskId: number,
  change: (task: Task) => Changes,
): Promise<Task> {
  const path = { user_id: userId, task_id: taskId };
  for (;;) {
    const found = await client.GET("/api/{user_id}/tasks/{task_id}", { params: { path } });
    if (!found.data) throw new Error(`The task can't be had: ${found.response.status}`);
    const version = found.response.headers.get("ETag") ?? "*";
    const { data, response } = await client.PUT("/api/{user_id}/tasks/{task_id}", {
      params: { path, header: { "If-Match": version } },
      body: change(found.data),
    });
    if (data) return data;
    if (response.status !== 412) throw new Error(`It can't be changed: ${response.status}`);
  }
}
