"""The console script: `edgetl fine-tune ...` is `python -m recipes.fine_tune ...`."""

import difflib
import importlib
import sys

from edgetl.config import command

COMMANDS = {
    "backbones": ("edgetl.backbones.__main__", "list the pretrained networks"),
    "audit": ("recipes.audit", "what is wrong with the photos and labels, before training"),
    "search": ("recipes.search", "find better settings of a recipe, for the device as well"),
    "choose-backbone": ("recipes.choose_backbone", "rank pretrained networks on a sample of your photos"),
    "feature-extraction": ("recipes.feature_extraction", "train a new head on a frozen backbone"),
    "fine-tune": ("recipes.fine_tune", "train the last blocks of a backbone as well"),
    "distill": ("recipes.distill", "train a small network towards a fine-tuned large one"),
    "cross-validate": ("recipes.cross_validate", "k-fold: how sure the figures are"),
    "find-learning-rate": ("recipes.find_learning_rate", "suggest learning rates for fine-tuning"),
    "convert": ("export.convert", "make .tflite artifacts from a run"),
    "optimize": ("export.optimize", "find the cheapest artifact within a budget of accuracy"),
    "layers": ("export.layers", "what int8 does to each layer"),
    "evaluate": ("export.evaluate", "score the artifacts on the test split"),
    "benchmark": ("export.benchmark", "time artifacts on this machine"),
    "bundle": ("export.bundle", "everything a device needs, in one folder"),
    "deploy": ("export.deploy", "run a bundle on a device, bring its figures back"),
    "report": ("export.report", "everything measured, as a page, a table and a model card"),
}


def main() -> None:
    """Hand over to a command's module."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from edgetl import __version__

        print(__version__)
        sys.exit(0)
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(COMMANDS)}"
        print(f"edgetl: unknown command {name!r}. {hint}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(COMMANDS[name][0])
    prog = f"edgetl {name}"
    # Only a search can end without what was asked for and yet without an error.
    status = getattr(module, "status", lambda _: 0)
    sys.exit(command(module.main, module.Config, prog=prog, show=module.show, status=status, argv=arguments[1:]))


def usage() -> str:
    """The list of commands."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["usage: edgetl <command> [options]", "", *lines, "", "edgetl <command> --help tells the options."]
    )


if __name__ == "__main__":
    main()
