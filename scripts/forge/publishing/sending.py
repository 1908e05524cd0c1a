"""Send a plan to the Hub in one commit: nobody ever sees half of it.

Large files go up first and are kept by the Hub by their hash: a run that was cut sends only what is not there yet. The
commit names the state of the repository that was looked at; if somebody changed it since, the Hub refuses. What was
changed there by anybody but this program is not overwritten unless asked. Afterwards every file's hash is asked back.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from forge import VERSION, hub
from forge.errors import BAD_INPUT, INTEGRITY, ForgeError
from forge.publishing import refusals
from forge.publishing.plan import OLLAMA, Plan
from forge.publishing.scan import Item

# Seconds between tries after 429, 5xx or a broken connection; the library itself waits up to 25 s a request before.
WAITS = (5.0, 15.0, 30.0)
PATIENCE = 300  # seconds: the Hub itself looks at large files before it answers a commit


@dataclass(frozen=True)
class Sent:
    """`ids`: what the Hub calls each file (SHA-256 of a large one, git's SHA-1 of a text)."""

    commit: str
    private: bool
    address: str
    ids: dict[str, str]


class Sending:
    """One plan on its way. `before`: ids of what was last sent to this repository, by name."""

    def __init__(self, plan: Plan, token: str, before: dict[str, str], replace: bool, say: Callable[[str], None]):
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils import disable_progress_bars, logging

        logging.set_verbosity_error()  # its warnings name addresses that are good for an upload
        if not sys.stderr.isatty():
            disable_progress_bars()
        hub.bound_waits(PATIENCE)
        self.api = HfApi(token=token, library_name="model-forge", library_version=VERSION)
        self.plan, self.before, self.replace, self.say = plan, before, replace, say
        # Kept over tries: what they know of a file (its hash, that it is up) is not found out twice.
        self.additions = {
            item.name: CommitOperationAdd(path_in_repo=item.name, path_or_fileobj=item.path) for item in plan.items
        }

    def run(self) -> Sent:
        """Send, as often as it takes within WAITS. Raises ForgeError: 2, 6 or 7."""
        for wait in (*WAITS, None):
            try:
                return self.once()
            except ForgeError:
                raise
            except Exception as error:
                if wait is None or not refusals.passing(error):
                    raise refusals.explain(error, self.plan.repo) from None
                self.say(f"  {refusals.what(error)}; trying again in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("the last try ends one way or the other")

    def once(self) -> Sent:
        repo = self.plan.repo
        self.api.create_repo(repo, private=self.plan.private, exist_ok=True)
        found = self.api.repo_info(repo)
        self.require_private(found.private)
        there = self.tree(found.sha)
        self.require_ours(there)
        operations = self.operations(there)
        commit = found.sha
        if operations:
            size = sum(item.size for item in self.plan.items if self.additions[item.name] in operations)
            self.say(f"  sending {size / 1e6:.1f} MB to {repo}")
            commit = self.api.create_commit(
                repo, operations, commit_message=self.message(), parent_commit=found.sha
            ).oid
        else:
            self.say(f"  {repo} holds all of it already")
        return self.verified(commit)

    def message(self) -> str:
        return f"{self.plan.evidence.config.layout.name}, {self.plan.kind}: by Model Forge {VERSION}"

    def tree(self, revision: str) -> dict:
        """Files of the repository at a commit, by name."""
        listed = self.api.list_repo_tree(self.plan.repo, recursive=True, revision=revision)
        return {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}

    def require_private(self, private: bool) -> None:
        if self.plan.private and not private:
            raise ForgeError(
                f"{self.plan.repo} is public, and upload.private is true: nothing was sent",
                "make it private on its settings page, name another, or set upload.private to false",
                BAD_INPUT,
            )
        if private and not self.plan.private:
            self.say(f"  note: {self.plan.repo} is private and stays so; its settings page makes it public")

    def require_ours(self, there: dict) -> None:
        """What would be overwritten or removed is what was last sent from here, or --replace was given; what stays is
        of the same model."""
        stale = [item.name for item in self.plan.others if item.name in there and not is_same(there[item.name], item)]
        if stale:
            raise ForgeError(
                f"{self.plan.repo} holds {stale[0]} of another state of the model: the parts would not fit together",
                "send all parts at once",
                BAD_INPUT,
            )
        if self.replace:
            return
        wanted = {item.name: item for item in self.plan.items}
        for name in sorted({*wanted, *self.plan.missing} & there.keys()):
            kept = name in wanted and is_same(there[name], wanted[name])
            if not kept and id_of(there[name]) != self.before.get(name):
                raise ForgeError(
                    f"{name} in {self.plan.repo} was not sent from here, or was changed since",
                    "look at the repository's history; scripts/upload_model.py --replace overwrites it",
                    INTEGRITY,
                )

    def operations(self, there: dict) -> list:
        from huggingface_hub import CommitOperationDelete

        gone = [CommitOperationDelete(path_in_repo=name) for name in self.plan.missing if name in there]
        new = [item for item in self.plan.items if item.name not in there or not is_same(there[item.name], item)]
        return [*gone, *(self.additions[item.name] for item in new)]

    def verified(self, commit: str) -> Sent:
        """The Hub holds each file with the hash that was checked here, and none that must not be there."""
        there = self.tree(commit)
        wrong = [item.name for item in self.plan.items if item.name not in there or not is_same(there[item.name], item)]
        wrong += [name for name in self.plan.missing if name in there]
        if wrong:
            raise ForgeError(
                f"{self.plan.repo} does not hold what was sent: {', '.join(wrong)}",
                "do not use it; run the same command again, and look at the repository if that does not help",
                INTEGRITY,
            )
        private = self.api.repo_info(self.plan.repo).private
        self.require_private(private)
        ids = {item.name: id_of(there[item.name]) for item in self.plan.items}
        return Sent(commit, private, f"{self.api.endpoint}/{self.plan.repo}", ids)


def id_of(entry) -> str:
    return entry.lfs.sha256 if entry.lfs else entry.blob_id


def is_same(entry, item: Item) -> bool:
    """Whether a file of the Hub has an item's bytes, by size and hash."""
    from huggingface_hub.utils.sha import git_hash

    if entry.size != item.size:
        return False
    return entry.lfs.sha256 == item.sha256 if entry.lfs else entry.blob_id == git_hash(item.path.read_bytes())


def left_over(plan: Plan, before: dict[str, str]) -> list[str]:
    """Files that an earlier upload sent and this one does not: they stay on the Hub."""
    return sorted(before.keys() - {item.name for item in plan.items} - set(OLLAMA))
