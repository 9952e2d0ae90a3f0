"""Export a model as a program: python -m resnet_jax.export CHECKPOINT OUT.stablehlo|OUT.onnx [--uint8]"""

import argparse

from resnet_jax.bucket.files import outputs_in_buckets
from resnet_jax.commands import Parser, command_line, make_console
from resnet_jax.config.runs import load_model
from resnet_jax.evaluation import exports

_DETAILS = f"""
The program takes batches of any size. The file holds the model card and sample inputs with the model's own logits, too:
  stablehlo  a zip of a jax.export program, JSON, and .npy arrays; resnet_jax.load_exported(OUT)(images) runs it, with
             JAX and without the code of the model
  onnx       card, sample_inputs and sample_logits in metadata_props: JSON, and .npy files in base64; float32 always.
             It needs the packages of requirements-export.txt and jax2onnx, which that file explains
As soon as it is written, it is read back, run on its samples, all and the first alone, and compared with the model:
to {exports.TOLERANCES["stablehlo"]:g} (stablehlo) or {exports.TOLERANCES["onnx"]:g} (onnx) of the largest logit.

Exit status: 0; 2, nothing was written; 3, the program gave other logits, and the file was removed.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m resnet_jax.export",
        description=__doc__.split(":")[0],
        epilog=_DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = "run directory, folder of one step, our .safetensors; or with --model another library's file"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=source)
    parser.add_argument("out", metavar="OUT", help=f"a file that is not there yet, {', '.join(exports.SUFFIXES)}")
    parser.add_argument("--model", metavar="NAME", help="our name of the net, for weights of another library")
    parser.add_argument("--step", default="best", help="of a run: best (default), latest or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--format", choices=list(exports.TOLERANCES), help="default: by the suffix of OUT")
    inside = "take uint8 images (b, h, w, c) and normalise them inside; default: normalised float32"
    parser.add_argument("--uint8", action="store_true", help=inside)
    platforms, text = ",".join(exports.DEFAULT_PLATFORMS), "of a StableHLO program, all in one file; default: "
    parser.add_argument("--platforms", default=platforms, metavar="NAMES", help=text + platforms)
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line():
        args = _parser().parse_args(argv)
        with outputs_in_buckets(args, "out"):
            path, kind, platforms = exports.check_target(args.out, args.format, args.platforms)
            dtype = "float32" if kind == "onnx" else None  # onnxruntime has no convolution in bfloat16
            loaded = load_model(args.checkpoint, args.step, ema=args.ema, name=args.model, dtype=dtype)
            difference = exports.write_export(path, kind, exports.Source(*loaded, args.uint8), platforms)
        make_console().print(f"wrote {args.out}, the model's logits to {difference:.1e} relative", soft_wrap=True)


if __name__ == "__main__":
    main()
