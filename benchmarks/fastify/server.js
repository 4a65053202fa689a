// [Task]: T041 [From]: specs/requirements.md
// The same API on Fastify, written as its documentation recommends: schemas for what comes in and
// goes out, verified tokens cached, one named prepared statement a request.

import { randomUUID } from "node:crypto";
import cors from "@fastify/cors";
import jwt from "@fastify/jwt";
import Fastify from "fastify";
import pg from "pg";

const { BETTER_AUTH_SECRET, DATABASE_URL, PORT } = process.env;

// A Date would lose the microseconds: "2026-11-23 09:00:00.12+00" becomes RFC 3339 as text.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => {
  const time = text.slice(11, -3);
  const seconds = time.length === 8 ? `${time}.` : time;
  return `${text.slice(0, 10)}T${seconds.padEnd(15, "0")}Z`;
});
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 10, options: "-c timezone=UTC" });
pool.on("error", (error) => app.log.error(error));

// One line a request, as uvicorn's access log has, in place of Fastify's two.
const app = Fastify({
  logger: true,
  disableRequestLogging: true,
  requestIdHeader: "x-request-id",
  genReqId: () => randomUUID(),
});
app.addHook("onRequest", async (request, reply) => {
  reply.header("x-request-id", request.id);
  reply.header("x-content-type-options", "nosniff");
  reply.header("cache-control", "private, no-cache");
});
app.addHook("onResponse", async (request, reply) => {
  request.log.info(`${request.ip} - "${request.method} ${request.url}" ${reply.statusCode}`);
});

app.register(cors, {
  origin: ["http://localhost:3000"],
  credentials: true,
  methods: ["GET", "POST", "PUT", "PATCH", "DELETE"],
});
app.register(jwt, {
  secret: BETTER_AUTH_SECRET,
  verify: { algorithms: ["HS256"], requiredClaims: ["sub", "exp"], cache: true },
});

app.setErrorHandler((error, request, reply) => {
  if (error.validation) {
    const detail = error.validation.map((failure) => ({
      type: failure.keyword,
      loc: [error.validationContext, ...failure.instancePath.split("/").slice(1)],
      msg: failure.message,
    }));
    return reply.code(422).send({ detail });
  }
  if (!error.statusCode || error.statusCode >= 500) {
    request.log.error(error);
    return reply.code(500).send({ detail: "Internal Server Error" });
  }
  return reply.code(error.statusCode).send({ detail: error.message });
});

app.get("/health", async () => ({ status: "ok" }));

const title = { type: "string", minLength: 1, maxLength: 200, pattern: "\\S" };
const description = { type: ["string", "null"], maxLength: 1000 };
const completed = { type: "boolean" };
const instant = { type: "string" };
const task = {
  type: "object",
  properties: {
    id: { type: "integer" },
    user_id: { type: "string" },
    title: { type: "string" },
    description: { type: ["string", "null"] },
    completed,
    created_at: instant,
    updated_at: instant,
  },
};
const params = {
  type: "object",
  properties: { user_id: { type: "string" }, task_id: { type: "integer", minimum: 1 } },
};

// $1 is the owner in all of them. What a statement changes moves updated_at, if it is a change.
const columns = "id, user_id, title, description, completed, created_at, updated_at";
const moved = "greatest(now(), updated_at + interval '1 microsecond')";
const statements = {
  list: `SELECT ${columns} FROM task WHERE user_id = $1 ORDER BY created_at DESC, id DESC`,
  get: `SELECT ${columns} FROM task WHERE user_id = $1 AND id = $2`,
  create: `
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    VALUES ($1, $2, $3, $4, now(), now()) RETURNING ${columns}`,
  update: `
    UPDATE task SET
      title = coalesce($3, title),
      description = CASE WHEN $4 THEN $5 ELSE description END,
      completed = coalesce($6, completed),
      updated_at = CASE WHEN coalesce($3, title) IS DISTINCT FROM title
        OR ($4 AND $5 IS DISTINCT FROM description)
        OR coalesce($6, completed) IS DISTINCT FROM completed THEN ${moved} ELSE updated_at END
    WHERE user_id = $1 AND id = $2 RETURNING ${columns}`,
  complete: `
    UPDATE task SET
      completed = coalesce($3, NOT completed),
      updated_at = CASE WHEN coalesce($3, NOT completed) <> completed THEN ${moved}
        ELSE updated_at END
    WHERE user_id = $1 AND id = $2 RETURNING ${columns}`,
  delete: "DELETE FROM task WHERE user_id = $1 AND id = $2",
};

function run(name, ...values) {
  return pool.query({ name, text: statements[name], values });
}

app.register(
  async (tasks) => {
    // Before the body is read.
    tasks.addHook("onRequest", async (request, reply) => {
      if (!request.headers.authorization) {
        reply.header("www-authenticate", "Bearer");
        return reply.code(401).send({ detail: "Missing authorization token" });
      }
      try {
        await request.jwtVerify();
      } catch (error) {
        const expired = error.code === "FST_JWT_AUTHORIZATION_TOKEN_EXPIRED";
        const detail = expired ? "Token has expired" : "Invalid token";
        reply.header("www-authenticate", 'Bearer error="invalid_token"');
        return reply.code(401).send({ detail });
      }
      if (request.user.sub !== request.params.user_id) {
        return reply.code(403).send({ detail: "Access denied" });
      }
    });

    const one = (rows, reply) => rows[0] ?? reply.code(404).send({ detail: "Task not found" });

    tasks.get(
      "/",
      { schema: { params, response: { 200: { type: "array", items: task } } } },
      async (request) => (await run("list", request.params.user_id)).rows,
    );

    const create = {
      type: "object",
      required: ["title"],
      properties: { title, description, completed },
    };
    tasks.post(
      "/",
      { schema: { params, body: create, response: { 201: task } } },
      async (request, reply) => {
        const { title, description = null, completed = false } = request.body;
        const user = request.params.user_id;
        const { rows } = await run("create", user, title.trim(), description, completed);
        reply.code(201).header("location", `/api/${encodeURIComponent(user)}/tasks/${rows[0].id}`);
        return rows[0];
      },
    );

    tasks.get(
      "/:task_id",
      { schema: { params, response: { 200: task } } },
      async (request, reply) => {
        const { user_id, task_id } = request.params;
        return one((await run("get", user_id, task_id)).rows, reply);
      },
    );

    const update = { type: "object", properties: { title, description, completed } };
    tasks.put(
      "/:task_id",
      { schema: { params, body: update, response: { 200: task } } },
      async (request, reply) => {
        const { user_id, task_id } = request.params;
        const { title, description, completed } = request.body;
        const describe = description !== undefined;
        const changes = [title?.trim(), describe, description, completed];
        return one((await run("update", user_id, task_id, ...changes)).rows, reply);
      },
    );

    tasks.patch(
      "/:task_id/complete",
      { schema: { params, response: { 200: task } } },
      async (request, reply) => {
        const { user_id, task_id } = request.params;
        return one((await run("complete", user_id, task_id, request.body?.completed)).rows, reply);
      },
    );

    tasks.delete("/:task_id", { schema: { params } }, async (request, reply) => {
      const { user_id, task_id } = request.params;
      const { rowCount } = await run("delete", user_id, task_id);
      return rowCount ? reply.code(204).send() : one([], reply);
    });
  },
  { prefix: "/api/:user_id/tasks" },
);

await app.listen({ port: Number(PORT), host: "127.0.0.1" });
