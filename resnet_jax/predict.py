"""Name what is on images: python -m resnet_jax.predict RUN IMAGE|FOLDER|PATTERN... [--format table|json|csv]"""

import argparse

from resnet_jax.commands import Parser, command_line
from resnet_jax.evaluation.rows import FORMATS, print_classes

_SOME_SKIPPED = 3  # exit status
_DETAILS = f"""
Images: JPEG, PNG, GIF, BMP, TIFF, WebP, PPM, AVIF and JPEG 2000, told by their content. They become what evaluation
makes of them, by the preprocessing that the checkpoint names: 8 bits of RGB, or grey for a model of grey images; of an
animation the first frame; without transparency (the colours under it show); as stored, not turned by EXIF; 16 bits
scaled to 8; CMYK converted. Skipped, with a line on stderr: files that are no image or end early, images of more than
67,108,864 pixels, and images with one side more than 100 times the other.

Exit status: 0, all were predicted; {_SOME_SKIPPED}, some were skipped; 2, refused, or the output cannot be written.
"""


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    description = __doc__.split(":")[0]
    parser = Parser(
        prog="python -m resnet_jax.predict", description=description, epilog=_DETAILS, formatter_class=formatter
    )
    source = "run directory, folder of one step, our .safetensors; or with --model weights of another library"
    parser.add_argument("checkpoint", metavar="RUN", help=source)
    parser.add_argument("--model", metavar="NAME", help="our name of the net, for weights of another library")
    images = (
        "an image; a folder, with its subfolders, or a quoted pattern ('photos/**/*.jpg') of images, in sorted order"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=images)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many classes of each image (default 5)")
    formats = """table (default); json: JSON Lines, one object for each image; csv: one line for each class of each
    image. All are written as they come, and json and csv alone on stdout"""
    parser.add_argument("--format", default="table", choices=FORMATS, help=formats)
    cam = """write the class activation map of the top class of each image over what the model saw of it, as PNG
    (CAM; Grad-CAM for nets without global pooling), NAME-DIGITS.png; json and csv name the file"""
    parser.add_argument("--cam", metavar="DIR", help=cam)
    parser.add_argument("--step", default="best", help="best (default), latest or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line():
        if print_classes(_parser().parse_args(argv)):
            raise SystemExit(_SOME_SKIPPED)


if __name__ == "__main__":
    main()
