"""Send the model to the Hub: private, only listed files, only what passed, and not before it was looked through.

  make upload-plan                        what would be sent, and where; nothing is sent
  make upload
  python scripts/upload_model.py --repo you/name-GGUF --gguf --modelfile --readme --private

Reads upload.* of the config, the records and verdicts of all phases, and HF_TOKEN or HUGGING_FACE_TOKEN from the
environment or .env. With --gguf, --adapter, --merged, --modelfile or --readme only those parts are sent, else
everything of upload.what. After a cut it does not send again what is up already. Writes the card and
the files for Ollama to build/<name>/upload/, what was sent to models/upload/<name>/upload.json and the audit trail.
"""

import argparse

from forge import command, config, hub, phase
from forge.errors import ENVIRONMENT, ForgeError
from forge.publishing import evidence, plan, record, refusals, scan, sending


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--repo", help="the repository, org/name; default: upload.repo")
    parser.add_argument("--gguf", action="store_true", help="the GGUF files, their manifest and verdicts")
    parser.add_argument("--adapter", action="store_true", help="the adapter, its tokenizer and verdicts")
    parser.add_argument("--merged", action="store_true", help="the merged model and its verdicts")
    parser.add_argument("--modelfile", action="store_true", help="Modelfile, template, system, params")
    parser.add_argument("--readme", action="store_true", help="the model card")
    parser.add_argument("--private", action="store_true", help="private, whatever upload.private says")
    parser.add_argument("--replace", action="store_true", help="overwrite what somebody else changed there")
    parser.add_argument("--plan", action="store_true", help="show what would be sent, send nothing")
    arguments = parser.parse_args()
    command.guard(lambda: upload(arguments), debug=arguments.debug)


def upload(arguments: argparse.Namespace) -> None:
    configuration = config.load(arguments.config)
    parts = {part for part in plan.PARTS if getattr(arguments, part)}
    kinds = wanted(parts, configuration.values.upload.what)
    repos = repositories(kinds, arguments.repo or configuration.values.upload.repo)
    private = arguments.private or configuration.values.upload.private
    token = hub.token() if arguments.plan else write_token(repos)
    with phase.lock(configuration.layout, "upload"):  # no phase replaces a file while it is sent
        plans = [plan.build(evidence.gather(configuration, kind), repos[kind], private, parts) for kind in kinds]
        for one in plans:
            show(one)
            for item in one.items:
                scan.check(item, token)
        if arguments.plan:
            print("nothing was sent")
            return
        for one in plans:
            one.refuse_other_licence()
        for one in plans:
            send(one, token, arguments.replace)


def wanted(parts: set[str], configured: list[str]) -> list[str]:
    """Kinds to send: those named on the command line, else the config's; a Modelfile is the GGUF's."""
    named = parts & set(evidence.NEEDS) or set(configured)
    return [kind for kind in evidence.NEEDS if kind in named or (kind == "gguf" and "modelfile" in parts)]


def repositories(kinds: list[str], name: str | None) -> dict[str, str | None]:
    """The repository of each kind. Raises ForgeError (2) for a name that is none, or one for several kinds."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = {kind: name and name.replace("{what}", kind) for kind in kinds}
    for repo in found.values():
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise ForgeError(f"{ascii(repo)} is no name of a repository: {error}", "write org/name") from None
        if repo and "/" not in repo:
            raise ForgeError(f"{ascii(repo)} names no owner", "write org/name")
    if name and len(set(found.values())) < len(kinds):
        raise ForgeError(f"{' and '.join(kinds)} would share {name}, which has one card", f"write {name}-{{what}}")
    return found


def write_token(repos: dict[str, str | None]) -> str:
    from huggingface_hub import get_token

    if None in repos.values():
        raise ForgeError("no repository is named", "set upload.repo in the config, or say --repo org/name")
    found = hub.token() or get_token()
    if not found:
        raise ForgeError(
            "there is no Hugging Face token",
            f"put HF_TOKEN=... into .env ({refusals.TOKENS}, write access)",
            ENVIRONMENT,
        )
    return found


def show(one: plan.Plan) -> None:
    to = one.repo or "no repository: upload.repo is not set"
    print(f"{one.evidence.config.layout.name}, {one.kind} -> {to} ({'private' if one.private else 'public'})")
    print(f"  {'bytes':>12}  {'SHA-256':64}  file")
    for item in one.items:
        print(f"  {item.size:12}  {item.sha256}  {item.name}")
    print(f"  {one.size:12}  in {len(one.items)} files, those made for it in {one.written}")
    verdicts = one.evidence.verdicts
    print("  checks: " + ", ".join(f"{name} {told['verdict']}" for name, told in verdicts.items()))
    for gate, reason in one.evidence.overrides.items():
        print(f"  {gate} was overridden, and the card says so: {reason}")
    for sentence in one.licence:
        print(f"  licence: {sentence}")


def send(one: plan.Plan, token: str, replace: bool) -> None:
    before = record.ids(one)
    sent = sending.Sending(one, token, before, replace, print).run()
    record.write(one, sent)
    print(f"published {sent.address} ({'private' if sent.private else 'public'}), commit {sent.commit}")
    for name in sending.left_over(one, before) if not one.others else ():
        print(f"  note: {name} is still there from an earlier upload, and the card does not tell of it")
    if one.kind == "gguf":
        show_commands(one, sent.private)


def show_commands(one: plan.Plan, private: bool) -> None:
    """How to reach it from any machine with Ollama."""
    told = one.evidence.records["modelfile"]
    there = f"hf.co/{one.repo}:{told['files'][0]['quantization']}"
    alias = f"{one.evidence.config.values.ollama.model_name or one.evidence.config.layout.name.lower()}:latest"
    if private:
        print("\nOllama reaches a private repository once its key (~/.ollama/id_ed25519.pub) is in your Hub account.")
    print(f"\nStraight from the Hub; the first line drops an older copy:\n  ollama rm {there}\n  ollama run {there}")
    print(f"\nUnder a short name:\n  ollama rm {alias}\n  ollama cp {there} {alias}\n  ollama list")


if __name__ == "__main__":
    main()
