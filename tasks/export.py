"""Export of a trained model to ONNX, a PyTorch program, safetensors or a Hugging Face folder.

`python -m tasks.export --ckpt runs/vision-builtin-both-s0 --format onnx` writes `model.onnx`, which
onnxruntime runs without PyTorch, and a model card.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import InputError
from tasks.inference.options import add_trust_option
from tasks.run.process import error_exits, prepare_process

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMATS = ("onnx", "pt2", "safetensors", "hf")


def parse(arguments: "Sequence[str] | None" = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.export",
        description="Export a trained model for use without this project.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ckpt", help="checkpoint, its http(s) address, or folder of a run or of runs [required]")
    add("--format", choices=FORMATS, default="onnx", help="what to write [onnx]")
    add("--out", type=Path, help="folder to write to [export-FORMAT in the folder of the run]")
    add(
        "--input",
        nargs="+",
        default=[],
        action="extend",
        help="inputs to check the export on, as of make predict [validation examples]",
    )
    add("--license", metavar="ID", help="license of the weights for the model card, such as mit")
    add("--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub")
    add_trust_option(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user error is one line and exit code 2."""
    with error_exits():
        options = parse(arguments)
        prepare_process()
        # Not at the top: these take seconds to import, and --help needs none.
        from tasks.exporting.folder import export
        from tasks.exporting.upload import check_repository, push
        from tasks.inference.opening import checkpoint_file
        from tasks.inference.runs import required_checkpoint

        file = checkpoint_file(required_checkpoint(options.ckpt))
        if options.push:
            if options.format != "hf":
                raise InputError(f"--push uploads --format=hf, not {options.format}")
            check_repository(options.push)
        beside = Path() if isinstance(file, str) else file if file.is_dir() else file.parent
        out = options.out or beside / f"export-{options.format}"
        checked = export(file, options.format, out, options.input, options.license, options.trust)
        if checked is not None:
            print(
                f"checked on {checked.examples}: logits differ by at most {checked.difference:.1e}"
                f" of the largest one; {checked.same_classes} of {checked.count} classes are equal"
            )
        print(f"export in {out}")
        if options.push:
            print(f"uploaded: {push(out, options.push)}")


if __name__ == "__main__":
    main()
