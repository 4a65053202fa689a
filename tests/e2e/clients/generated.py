# [Task]: T100 [From]: specs/requirements.md
"""The client that openapi-python-client generates: generated.py API_URL USER_ID TOKEN"""

import json
import sys

from task_api_client import AuthenticatedClient
from task_api_client.api.tasks import create_task, delete_task, list_tasks, update_task
from task_api_client.models import ErrorBody, InvalidInput, TaskCreate, TaskUpdate


def shown(error: ErrorBody | InvalidInput) -> str:
    return json.dumps(error.to_dict(), separators=(",", ":"))


base_url, user, token = sys.argv[1:]
client = AuthenticatedClient(base_url, token)

created = create_task.sync_detailed(user, client=client, body=TaskCreate(f"  {'x' * 200}\n"))
task = created.parsed
print("created", created.status_code.value, len(task.title))
create_task.sync(user, client=client, body=TaskCreate("Buy tea", description=None))

first = list_tasks.sync_detailed(user, client=client, limit=1)
cursor = first.headers["X-Next-Cursor"]
second = list_tasks.sync(user, client=client, limit=1, cursor=cursor)
print("pages", len(first.parsed), len(second), str(second[0].id == task.id).lower())

version = created.headers["ETag"]
change = TaskUpdate(title="Buy oats")
changed = update_task.sync_detailed(user, task.id, client=client, body=change, if_match=version)
print("updated", changed.status_code.value, changed.parsed.title)
change = TaskUpdate(completed=True)
stale = update_task.sync_detailed(user, task.id, client=client, body=change, if_match=version)
print("stale", stale.status_code.value, shown(stale.parsed))

refused = create_task.sync_detailed(user, client=client, body=TaskCreate(" "))
print("refused", refused.status_code.value, shown(refused.parsed))

deleted = delete_task.sync_detailed(user, task.id, client=client)
gone = delete_task.sync_detailed(user, task.id, client=client)
print("deleted", deleted.status_code.value, gone.status_code.value)
