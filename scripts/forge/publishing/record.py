"""upload.json: what was last sent to each repository, and the entry in the audit trail that says so."""

import datetime
import json

from forge import audit, files, manifest
from forge.errors import INTEGRITY, ForgeError
from forge.publishing.evidence import WEIGHTS
from forge.publishing.plan import Plan
from forge.publishing.sending import Sent


def _all(plan: Plan) -> dict:
    path = plan.evidence.config.layout.upload
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ForgeError(
            f"{path} is damaged: {error}", f"delete {path}: --replace then takes over", INTEGRITY
        ) from None


def ids(plan: Plan) -> dict[str, str]:
    """What the Hub called each file that was last sent to the plan's repository, by name."""
    return {item["name"]: item["id"] for item in _all(plan).get(plan.repo, {}).get("files", [])}


def write(plan: Plan, sent: Sent) -> None:
    """Keep what is on the Hub now. A run that found everything there adds no entry to the trail."""
    path, known = plan.evidence.config.layout.upload, _all(plan)
    before = known.get(plan.repo, {})
    now = [
        {"name": item.name, "size": item.size, "sha256": item.sha256, "id": sent.ids[item.name]} for item in plan.items
    ]
    names = {item["name"] for item in now} | set(plan.missing)
    kept = [] if not plan.others else [item for item in before.get("files", []) if item["name"] not in names]
    content = {
        "kind": plan.kind,
        "address": sent.address,
        "private": sent.private,
        "commit": sent.commit,
        "digest": manifest.digest(plan.evidence.records[WEIGHTS[plan.kind]]),
        "verdicts": {name: told["verdict"] for name, told in plan.evidence.verdicts.items()},
        "overrides": plan.evidence.overrides,
        "files": sorted([*kept, *now], key=lambda item: item["name"]),
    }
    if content == {key: value for key, value in before.items() if key != "time"}:
        return
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    files.write_json(path, {**known, plan.repo: {**content, "time": time}})
    audit.append("uploaded", project=plan.evidence.config.layout.name, repo=plan.repo, **{**content, "files": now})
