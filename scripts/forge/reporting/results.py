"""The table of results that `make all` ends with and the report begins with."""


def figures(results: dict, columns: list[str]) -> list[list[str]]:
    """A line a figure, with its sample size: the base before training, with its adapter, each finished file."""
    said, loss, kl = results["questions"], results["loss"], results["mean_kl"]
    found = []
    for name, part, whole in (
        ("held-out questions answered with their fact", "right", "asked"),
        ("answers that end by themselves", "stopped", "answers"),
    ):
        if any(said[column][whole] for column in columns):
            found.append([name, *(f"{said[column][part]} of {said[column][whole]}" for column in columns)])
    found.append(
        [f"loss on {loss['rows']} held-out rows ({loss['tokens']} tokens)"] + [f"{loss[name]:.2f}" for name in columns]
    )
    files = columns[2:]
    found.append(["KL divergence from the merged model", "-", "-", *(f"{kl[name]:.4f}" for name in files)])
    return found
