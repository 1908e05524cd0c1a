"""List every adapter that is kept: the current one and those in models/archive/.

Prints date, rows, steps, validation loss, the verdict of verify-adapter and the settings that differ from the
current one's. With --prune it removes the archive of this project, with --restore DIGEST it makes an archived adapter
the current one (the current one is archived); the next make checks and converts it without training.
"""

import shutil

from forge import archive, command, config, files, graph, manifest, phase
from forge.errors import ForgeError

TRAIN = graph.BY_NAME["train"]


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--prune", action="store_true", help="remove this project's archived adapters")
    parser.add_argument("--restore", metavar="DIGEST", help="make this archived adapter the current one")
    arguments = parser.parse_args()
    command.guard(lambda: run(arguments), debug=arguments.debug)


def run(arguments) -> None:
    layout = config.load(arguments.config).layout
    if not (arguments.prune or arguments.restore):
        show(layout)
        return
    with phase.lock(layout, "runs"):
        if arguments.prune:
            for folder in archive.kept(layout):
                files.remove(folder)
                print(f"removed {folder}")
        else:
            restore(layout, arguments.restore)


def show(layout: graph.Layout) -> None:
    folders = [folder for folder in (layout.adapter, *archive.kept(layout)) if (folder / "manifest.json").is_file()]
    if not folders:
        print(f"{layout.name} has no adapter yet: run make train")
        return
    newest = manifest.read(folders[0] / "manifest.json")
    print(
        f"{'adapter':12} {'trained':20} {'rows':>6} {'steps':>6} {'val. loss':>9} {'verdict':>8}  settings that differ"
    )
    for folder in folders:
        content = manifest.read(folder / "manifest.json")
        facts = content["facts"]
        differ = manifest.changed_settings(newest["settings"], content["settings"])
        note = "(current)" if folder == layout.adapter else differ
        print(
            f"{manifest.digest(content)[:12]:12} {content['started'][:19]:20} {facts['rows']['train']:6} "
            f"{facts['steps']:6} {facts['validation_loss']:9.4f} {archive.verdict(layout, folder):>8}  {note}"
        )


def restore(layout: graph.Layout, digest: str) -> None:
    """Swap an archived adapter in. Its settings must be put into the config too, or make trains again."""
    found = [
        folder
        for folder in archive.kept(layout)
        if folder.name.removeprefix(f"{layout.name}-adapter-").startswith(digest)
    ]
    if len(found) != 1:
        raise ForgeError(f"{len(found)} archived adapters begin with {digest!r}", "see make runs for their digests")
    record = found[0] / "manifest.json"
    content = manifest.read(record)
    manifest.verify(record, content)
    staging = files.staging_path(layout.adapter)
    files.remove(staging)
    shutil.copytree(found[0], staging)
    (staging / archive.VERDICT).unlink(missing_ok=True)
    files.swap_folder(layout.adapter, archive.keeper(layout))
    print(f"{found[0].name} is the current adapter. Its settings, to be put into the config:")
    for section, values in content["settings"].items():
        print(f"  {section}: {values}")


if __name__ == "__main__":
    main()
