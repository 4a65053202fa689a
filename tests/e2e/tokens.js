// [Task]: T031 [From]: specs/requirements.md
// Prints, as JSON, tokens that a real Better Auth makes for one of the example's users with the
// example's secret and keys, but does not hand out for an API. It is piped into a `node` that runs in
// the example's folder, where the packages are installed.

import { betterAuth } from "better-auth";
import { createEmailVerificationToken } from "better-auth/api";
import { jwt } from "better-auth/plugins";
import pg from "pg";

const { DATABASE_URL, BETTER_AUTH_SECRET: secret, ORIGIN, EMAIL, PASSWORD } = process.env;
const pool = new pg.Pool({ connectionString: DATABASE_URL });

function server({ baseURL = ORIGIN, session, jwtOptions }) {
  return betterAuth({
    database: pool,
    secret,
    baseURL,
    session,
    emailAndPassword: { enabled: true },
    plugins: [jwt(jwtOptions)],
  });
}

/** The session as a server keeps it in a cookie, when it is told to keep it as a JWT. */
async function cachedSession(jwtOptions) {
  const session = { cookieCache: { enabled: true, strategy: "jwt" } };
  const { headers } = await server({ session, jwtOptions }).api.signInEmail({
    body: { email: EMAIL, password: PASSWORD },
    returnHeaders: true,
  });
  const cookies = headers.getSetCookie().map((cookie) => cookie.split(";")[0].split("="));
  return new Map(cookies).get("better-auth.session_data");
}

async function signed(baseURL, claims = {}) {
  const payload = { sub: user.id, iat: now, exp: now + 900, ...claims };
  const { token } = await server({ baseURL }).api.signJWT({ body: { payload } });
  return token;
}

const { rows } = await pool.query('SELECT id FROM "user" WHERE email = $1', [EMAIL]);
const [user] = rows;
const now = Math.floor(Date.now() / 1000);
const tokens = {
  good: await signed(ORIGIN),
  expired: await signed(ORIGIN, { iat: now - 960, exp: now - 60 }),
  "another server's": await signed("http://elsewhere.example"),
  "cached session, EdDSA": await cachedSession({ sessionCookieCache: true }),
  "cached session, HS256": await cachedSession(),
  "email verification": await createEmailVerificationToken(secret, EMAIL),
};
console.log(JSON.stringify(tokens));
await pool.end();
