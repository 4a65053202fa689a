// [Task]: T098 [From]: specs/requirements.md
// A Better Auth that its own environment variables configure, and the plugin's options in JWT. It is given
// to a `node` that runs in the example's folder, where the packages are installed.

import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import { SignJWT } from "jose";
import pg from "pg";

const { PORT, JWT, DATABASE_URL } = process.env;
const auth = betterAuth({
  database: new pg.Pool({ connectionString: DATABASE_URL }),
  emailAndPassword: { enabled: true },
  plugins: [jwt(JSON.parse(JWT))],
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
});
await (await getMigrations(auth.options)).runMigrations();
const answerAuth = toNodeHandler(auth);

/** A token as a bridge route signs it, with the secret that Better Auth uses. */
async function bridged() {
  const { secret } = await auth.$context;
  return new SignJWT({ sub: "bridged" })
    .setProtectedHeader({ alg: "HS256" })
    .setIssuedAt()
    .setExpirationTime("15m")
    .sign(new TextEncoder().encode(secret));
}

createServer(async (request, response) => {
  if (request.url !== "/bridged") return answerAuth(request, response);
  response.end(await bridged());
}).listen(Number(PORT), "localhost");
