// [Task]: T030 [From]: specs/requirements.md
// The task API, called from a browser: one class and its errors, and nothing of the page.

/**
 * Something went wrong that the user should read; the message says what, in plain words.
 * `status` is the API's answer. Without one, or with 5xx, the request may have been done all the same.
 */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  get isDefinite() {
    return this.status >= 400 && this.status < 500;
  }
}

/** There is no session any more: sign in again. */
export class SignedOut extends Failure {}

/** The session is now another user's, as after signing in from a second tab. */
export class OtherUser extends Failure {}

/** The task has been deleted, here or elsewhere. */
export class Gone extends Failure {}

/** The Idempotency-Key has made a task already, of another body. */
export class KeyUsed extends Failure {}

/** Others have changed the same fields of the task, which is now `current`. */
export class Conflict extends Failure {
  constructor(current) {
    super("This task was changed elsewhere. Choose which version to keep.", 412);
    this.current = current;
  }
}

const UNREACHABLE =
  "The task service can’t be reached. Check your connection, then try again.";
const UNAVAILABLE =
  "The task service is temporarily unavailable. Nothing is lost: try again in a moment.";
const NO_SIGN_IN = "Signing in is temporarily unavailable. Try again in a moment.";
const REFUSED =
  "The task service refuses this kind of token. Choose the other kind, or check its settings.";

/** fetch, with every way in which no answer comes turned into one Failure. */
export async function reach(url, options, unreachable = NO_SIGN_IN) {
  try {
    return await fetch(url, { signal: AbortSignal.timeout(10_000), ...options });
  } catch {
    throw new Failure(unreachable);
  }
}

/** A token for the API from one of this site's own routes, by the session's cookie. */
export async function fetchToken(route) {
  const response = await reach(route, { cache: "no-store" });
  if (response.status === 401) throw new SignedOut("Your session has ended. Please sign in again.");
  if (!response.ok) throw new Failure(NO_SIGN_IN);
  return (await response.json()).token;
}

/** One user's tasks. `getToken` is asked for a token when there is none, or none that is valid. */
export class Tasks {
  #url;
  #getToken;
  #token = null;

  constructor(apiUrl, userId, getToken) {
    this.#url = `${apiUrl}/api/${encodeURIComponent(userId)}/tasks`;
    this.#getToken = getToken;
  }

  /** The browser sends If-None-Match by itself, and takes an unchanged list from its cache. */
  async list() {
    return (await this.#request("GET")).body;
  }

  /**
   * Add a task. Send the same key until the answer is definite: the task is then made once.
   * `replayed` says that an earlier request has made it.
   */
  async add(task, key) {
    const headers = { "Idempotency-Key": key };
    const { body, response } = await this.#request("POST", "", task, headers);
    return { task: body, replayed: response.headers.get("Idempotency-Replayed") === "true" };
  }

  /**
   * Change fields of a task that was read as `base`. Changes of others to its other fields stay.
   * Throws Conflict where they changed the same field to something else.
   */
  async edit(base, changes) {
    for (;;) {
      const { body: current, response } = await this.#request("GET", `/${base.id}`);
      const pending = Object.keys(changes).filter((field) => current[field] !== changes[field]);
      // All is there already: made by an earlier attempt whose answer was lost, or by others.
      if (!pending.length) return current;
      if (pending.some((field) => current[field] !== base[field])) throw new Conflict(current);
      const headers = { "If-Match": response.headers.get("ETag") };
      try {
        return (await this.#request("PUT", `/${base.id}`, changes, headers)).body;
      } catch (error) {
        if (error.status !== 412) throw error;
      }
    }
  }

  /** Sets rather than toggles, so that trying again is safe. */
  async complete(id, completed) {
    return (await this.#request("PATCH", `/${id}/complete`, { completed })).body;
  }

  /** A task that is gone already, by an earlier attempt or by others, is no failure. */
  async delete(id) {
    try {
      await this.#request("DELETE", `/${id}`);
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
    }
  }

  async #request(method, path = "", body = undefined, headers = {}) {
    let response = await this.#send(method, path, body, headers);
    if (response.status === 401) {
      // Expired by the service's clock, or signed with a key that is no more: once more, with a new one.
      this.#token = null;
      response = await this.#send(method, path, body, headers);
    }
    if (!response.ok) throw await failureOf(response);
    if (response.status === 204) return { response };
    try {
      return { response, body: await response.json() };
    } catch {
      throw new Failure(UNREACHABLE); // The connection broke off, or took too long.
    }
  }

  async #send(method, path, body, headers) {
    if (!this.#token || isExpired(this.#token)) this.#token = await this.#getToken();
    headers = { ...headers, Authorization: `Bearer ${this.#token}` };
    if (body) headers["Content-Type"] = "application/json";
    const options = { method, headers, body: body && JSON.stringify(body) };
    return reach(this.#url + path, options, UNREACHABLE);
  }
}

/** Whether the token's time is up, or nearly so. The service has the last word, by a 401. */
function isExpired(token) {
  const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  return JSON.parse(atob(payload)).exp * 1000 < Date.now() + 10_000;
}

async function failureOf(response) {
  const { status } = response;
  if (status === 503) return new Failure(UNAVAILABLE, status);
  if (status === 401) return new Failure(REFUSED, status);
  if (status === 403) return new OtherUser("Someone else has signed in here.", status);
  const { detail } = await response.json().catch(() => ({}));
  if (status === 404) return new Gone("This task was deleted elsewhere.", status);
  // A 422 comes with a list of what is wrong with which member.
  if (Array.isArray(detail)) {
    const failure = detail.some(({ type }) => type === "idempotency_key_reused") ? KeyUsed : Failure;
    return new failure(detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join(". "), status);
  }
  return new Failure(detail ? `${detail}.` : `The task service answered ${status}.`, status);
}
