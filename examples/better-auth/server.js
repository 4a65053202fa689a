// [Task]: T030 [From]: specs/requirements.md
// A frontend's server: Better Auth, two ways to a token for the task API, and one static page.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { fromNodeHeaders, toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import { SignJWT } from "jose";
import pg from "pg";

const secret = required("BETTER_AUTH_SECRET", "the secret that the task API has");
const databaseUrl = required("DATABASE_URL", "the PostgreSQL database of the task API");
const port = Number(process.env.PORT || 3000);
const origin = new URL(process.env.BETTER_AUTH_URL || `http://localhost:${port}`).origin;
const apiUrl = (process.env.API_URL || "http://localhost:8000").replace(/\/+$/, "");
const policy =
  "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; " +
  `connect-src 'self' ${new URL(apiUrl).origin}`;

const pool = new pg.Pool({ connectionString: databaseUrl, connectionTimeoutMillis: 2000 });
// Without a listener, a connection that the database closes would end the process.
pool.on("error", (error) => console.error(`database: ${error.message}`));

const auth = betterAuth({
  database: pool,
  secret,
  baseURL: origin,
  emailAndPassword: { enabled: true },
  user: { deleteUser: { enabled: true } },
  plugins: [jwt()],
  telemetry: { enabled: false },
  // For one person on one machine. On the internet, leave this line out: the default limits guessing.
  rateLimit: { enabled: false },
});

const answerAuth = toNodeHandler(auth);

/** The bridge: a session in exchange for a token signed HS256 with the secret that the API shares. */
async function answerToken(request, response) {
  const session = await auth.api.getSession({ headers: fromNodeHeaders(request.headers) });
  if (!session) return sendJson(response, 401, { message: "Not signed in" });
  const token = await new SignJWT({ sub: session.user.id })
    .setProtectedHeader({ alg: "HS256" })
    .setIssuedAt()
    .setExpirationTime("15m") // A string: a number would be a date, and long past.
    .sign(new TextEncoder().encode(secret));
  sendJson(response, 200, { token });
}

const pages = new Map([
  ["/", ["index.html", "text/html"]],
  ["/app.js", ["app.js", "text/javascript"]],
  ["/tasks.js", ["tasks.js", "text/javascript"]],
  ["/style.css", ["style.css", "text/css"]],
]);

async function answer(request, response) {
  const [pathname] = request.url.split("?");
  response.setHeader("X-Content-Type-Options", "nosniff");
  if (pathname.startsWith("/api/auth/")) return answerAuth(request, response);
  if (request.method !== "GET") return sendJson(response, 405, { message: "Only GET here" });
  if (pathname === "/api/token") return answerToken(request, response);
  if (pathname === "/config.json") return sendJson(response, 200, { apiUrl });
  if (!pages.has(pathname)) return sendJson(response, 404, { message: "No such page" });
  const [file, type] = pages.get(pathname);
  response.setHeader("Content-Type", `${type}; charset=utf-8`);
  response.setHeader("Cache-Control", "no-cache");
  response.setHeader("Content-Security-Policy", policy);
  response.end(await readFile(new URL(`public/${file}`, import.meta.url)));
}

function sendJson(response, status, body) {
  response.writeHead(status, { "Content-Type": "application/json", "Cache-Control": "no-store" });
  response.end(JSON.stringify(body));
}

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    console.error(`${request.method} ${request.url}: ${error.message}`);
    if (response.headersSent) return response.destroy();
    sendJson(response, 503, { message: "Signing in is temporarily unavailable" });
  });
});

try {
  // Makes Better Auth's tables, or adds what a newer version wants.
  await (await getMigrations(auth.options)).runMigrations();
} catch (error) {
  stop(`The database of DATABASE_URL can't be prepared: ${error.message || error.code}.`);
}
server.on("error", (error) => stop(`Port ${port} can't be used: ${error.code}.`));
server.listen(port, "localhost", () => console.log(`Open ${origin}`));

function required(name, meaning) {
  return process.env[name] || stop(`Set ${name} to ${meaning}, in the environment.`);
}

function stop(sentence) {
  console.error(sentence);
  process.exit(1);
}
