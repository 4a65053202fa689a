// [Task]: T030 [From]: specs/requirements.md
// The task API, called from a browser: one class and three errors, and nothing of the page.

/** Something went wrong that the user should read; the message says what, in plain words. */
export class Failure extends Error {}

/** There is no session any more: sign in again. */
export class SignedOut extends Failure {}

/** The session is now another user's, as after signing in from a second tab. */
export class OtherUser extends Failure {}

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

  list() {
    return this.#request("GET");
  }

  add(task) {
    return this.#request("POST", "", task);
  }

  edit(id, changes) {
    return this.#request("PUT", `/${id}`, changes);
  }

  /** Sets rather than toggles, so that trying again is safe. */
  complete(id, completed) {
    return this.#request("PATCH", `/${id}/complete`, { completed });
  }

  delete(id) {
    return this.#request("DELETE", `/${id}`);
  }

  async #request(method, path = "", body = undefined) {
    let response = await this.#send(method, path, body);
    if (response.status === 401) {
      // Expired by the service's clock, or signed with a key that is no more: once more, with a new one.
      this.#token = null;
      response = await this.#send(method, path, body);
    }
    if (response.status === 204) return null;
    if (response.ok) return response.json();
    throw await failureOf(response);
  }

  async #send(method, path, body) {
    if (!this.#token || isExpired(this.#token)) this.#token = await this.#getToken();
    const headers = { Authorization: `Bearer ${this.#token}` };
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
  if (response.status === 503) return new Failure(UNAVAILABLE);
  if (response.status === 401) return new Failure(REFUSED);
  if (response.status === 403) return new OtherUser("Someone else has signed in here.");
  const { detail } = await response.json().catch(() => ({}));
  // A 422 comes with a list of what is wrong with which member.
  if (Array.isArray(detail)) {
    return new Failure(detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join(". "));
  }
  return new Failure(detail ? `${detail}.` : `The task service answered ${response.status}.`);
}
