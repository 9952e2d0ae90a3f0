"""Prepare a data set once, as ArrayRecord files: `python -m resnet_jax.data.prepare NAME`.

Reading what this writes needs no TensorFlow; writing it does (`pip install -r requirements-prepare.txt`).
On a machine without a network, fetch the files elsewhere and name their folder with `--downloads`; what must be
fetched by hand always (ImageNet), with `--manual`. A copy that TensorFlow Datasets has prepared as TFRecord files
is converted with `--tfrecord`.
"""

import importlib.util
import json
import logging
import pathlib
import shutil
import tempfile
import textwrap
import time

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, download_manager, downloader, resource

from resnet_jax.commands import Parser, command_line
from resnet_jax.data.info import DATASETS
from resnet_jax.data.tfds import NAMED, expand_corruptions
from resnet_jax.errors import UserError, did_you_mean


def prepare(
    name: str,
    data_dir: str | None = None,
    downloads: str | None = None,
    manual: str | None = None,
    tfrecord: str | None = None,
) -> None:
    """Write the data set `name` under `data_dir` as ArrayRecord files, unless it is there already.

    Args:
      name: a key of `DATASETS`, or a builder of TensorFlow Datasets for image classification, with its config after a
        slash if need be: `imagenet2012`, `imagenette/320px-v2`, `cifar10_corrupted/fog_1`.
      data_dir: root of the prepared data sets; None means TFDS's own (~/tensorflow_datasets or $TFDS_DATA_DIR).
      downloads: folder with the files that TFDS would download, named as in their URLs. It is only read.
      manual: folder with the files that TFDS cannot download, as their instructions say.
      tfrecord: root of data sets that TFDS has prepared as TFRecord files, to convert from. It is only read.

    Raises:
      UserError: the user can fix it; the message tells how.
    """
    if name in DATASETS and DATASETS[name].tfds_name is None:
        print(f"{name} needs no preparation: it comes with an installed package\n  {_next_command(name)}")
        return
    builder = _builder(name, data_dir)
    start, is_new = time.monotonic(), not builder.data_path.exists()
    if is_new:
        try:
            _write(builder, name, downloads, manual, tfrecord)
        except OSError as error:
            raise UserError(f"{name} could not be written to {builder.data_dir}: {error}") from error
    _check_splits(builder, name, is_new)
    took = f"prepared in {time.monotonic() - start:.1f} s" if is_new else "is prepared already"
    splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    use = _next_command(name, data_dir, "train" in builder.info.splits)
    print(f"{name} {took}: {builder.data_dir}\n  splits: {splits}\n  {use}")


def _builder(name, data_dir):
    tfds_name = DATASETS[name].tfds_name if name in DATASETS else name.removeprefix("tfds:")
    try:
        return tfds.builder(tfds_name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        near = did_you_mean(name, (*DATASETS, *tfds.list_builders(with_community_datasets=False)))
        if near.startswith("known"):  # hundreds of names
            near = f"{did_you_mean(name, (*DATASETS, *NAMED))}, or another builder of TensorFlow Datasets"
        raise UserError(f"there is no data set {name!r}; {near}") from None
    except ValueError as error:  # no such config; or what TFDS says when the data set is there as TFRecord files
        raise UserError(
            f"{name} cannot be prepared there: {error}. If it is there as TFRecord files, give their --data_dir as "
            "--tfrecord, and another --data_dir"
        ) from error


def _next_command(name, data_dir=None, to_train_on=True):
    if not to_train_on:
        return f"evaluate:  python -m resnet_jax.evaluate WORKDIR --data {name}{_option('--data_dir ', data_dir)}"
    where = _option("--config.data.data_dir=", data_dir)
    if name in DATASETS:
        has_recipe = (pathlib.Path(__file__).parent.parent / "configs" / f"{name}.py").exists()
        chosen = f"--config=configs/{name}.py" if has_recipe else f"--config.data.name={name}"
        return f"train:  python train.py {chosen}{where}"
    recipe = "imagenet_resnet50" if name == "imagenet2012" else "imagenette"
    name = name if name in NAMED else f"tfds:{name.removeprefix('tfds:')}"
    return f"train:  python train.py --config=configs/{recipe}.py --config.data.name={name}{where}"


def _option(flag, value):
    return "" if value is None else f" {flag}{value}"


def _write(builder, name, downloads, manual, tfrecord):
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "preparing a data set needs TensorFlow (reading it later does not), and it is not installed; "
            "try: pip install -r requirements-prepare.txt"
        )
    if tfrecord is not None:
        _convert(builder, name, tfrecord)
    elif manual is not None or (downloads is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS):
        _write_from_manual(builder, name, manual)
    elif downloads is None:
        _write_from_network(builder, name)
    else:
        _write_from_files(builder, name, pathlib.Path(downloads).expanduser().resolve())


def _write_from_network(builder, name):
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # else each try is a warning, before the message below
    downloader.MAX_RETRIES = 4  # TFDS's 10, ever further apart, keep a machine without a network waiting for minutes
    try:
        builder.download_and_prepare()
    except (requests.RequestException, tfds.download.DownloadError, download_manager.NonMatchingChecksumError) as error:
        raise UserError(
            f"{name} could not be downloaded: {error}\n"
            f"Try again, or fetch these files elsewhere into one folder DIR:\n{_listing(builder.url_infos)}\n"
            "and run the same command with --downloads DIR"
        ) from error


def _write_from_manual(builder, name, manual):
    folder = pathlib.Path(manual).expanduser().resolve() if manual else None
    if folder is None or not folder.is_dir():
        found = "no --manual DIR" if folder is None else f"no folder {folder}"
        instructions = textwrap.indent(textwrap.dedent(builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").strip(), "  ")
        raise UserError(f"{name} is made from files that must be fetched by hand; found {found}:\n{instructions}")
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    except (AssertionError, ValueError) as error:
        raise UserError(f"{name} could not be made from the files in {folder}: {error}") from error


def _convert(builder, name, tfrecord):
    """Copy every record as it is, and the notes beside them: TFDS stores the same bytes in both formats."""
    import tensorflow as tf
    from array_record.python import array_record_module

    stored = tfds.builder(builder.info.full_name.rsplit("/", 1)[0], data_dir=tfrecord, file_format="tfrecord")
    source, target = pathlib.Path(stored.data_dir), pathlib.Path(builder.data_dir)
    shards = sorted(source.glob("*.tfrecord-*"))
    if not shards:
        raise UserError(f"--tfrecord: expected TFRecord files of {name} in {source}, found none")
    target.parent.mkdir(parents=True, exist_ok=True)
    expected, written = sum(split.num_examples for split in stored.info.splits.values()), 0
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unfinished = pathlib.Path(scratch) / "unfinished"
        shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("*.tfrecord-*"))
        for shard in shards:
            path = unfinished / shard.name.replace(".tfrecord-", ".array_record-")
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            try:
                for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
                    writer.write(record)
                    written += 1
            except tf.errors.OpError as error:
                raise UserError(f"--tfrecord: {shard} is corrupt: {error.message}; copy it again") from None
            finally:
                writer.close()
        if written != expected:
            raise UserError(f"--tfrecord: expected {expected:,} examples in {source}, found {written:,}; copy it again")
        info = json.loads((unfinished / "dataset_info.json").read_text())
        info["fileFormat"] = "array_record"
        (unfinished / "dataset_info.json").write_text(json.dumps(info, indent=2))
        unfinished.rename(target)
    builder.info.read_from_directory(target)


def _write_from_files(builder, name, downloads):
    files = {url: downloads / _file_name(url) for url in builder.url_infos}
    if missing := [url for url, path in files.items() if not path.is_file()]:
        raise UserError(
            f"{downloads} lacks files that {name} is made from:\n{_listing(missing)}\n"
            f"Fetch them into {downloads} and try again."
        )
    found = {url: checksums.compute_url_info(path).checksum for url, path in files.items()}
    differing = [url for url, info in builder.url_infos.items() if found[url] != info.checksum]
    for url in differing:
        print(
            f"warning: {files[url]} is not the file that TFDS registers for {name}; continuing with it\n"
            f"  SHA-256 expected: {builder.url_infos[url].checksum}\n  SHA-256 found:    {found[url]}"
        )
    # TFDS trusts a file in its download cache without looking at it again, and would keep what it unpacks there for
    # other data sets and later calls. So the cache is a throw-away one that only points at the user's files.
    with tempfile.TemporaryDirectory() as cache:
        _link_into_cache(builder, files, pathlib.Path(cache))
        try:
            builder.download_and_prepare(download_dir=cache)
        except Exception as error:
            if not differing or isinstance(error, OSError):
                raise
            raise UserError(
                f"{name} could not be made from the files in {downloads}: {type(error).__name__}: {error}\n"
                f"These are not the files that TFDS registers; fetch them again:\n{_listing(differing)}"
            ) from error


def _link_into_cache(builder, files, cache):
    (cache / builder.name).mkdir()
    for url, path in files.items():
        info = builder.url_infos[url]
        link = cache / builder.name / resource.get_dl_fname(url, info.checksum)
        link.symlink_to(path)
        # TFDS takes a cached file only with this note beside it.
        resource.write_info_file(url, link, builder.name, path.name, info)


def _check_splits(builder, name, is_new):
    expected = DATASETS[name].splits if name in DATASETS else {}
    found = {str(split): info.num_examples for split, info in builder.info.splits.items()}
    if expected == {split: found.get(split) for split in expected}:
        return
    if is_new:
        builder.data_path.rmtree()  # so that the next call starts afresh
    advice = "Look at the files it was made from" if is_new else f"Delete {builder.data_dir}"
    raise UserError(f"{name} should have the splits {expected}, but TFDS wrote {found}. {advice} and prepare it again.")


def _listing(urls):
    return "\n".join(f"  {_file_name(url)}  {url}" for url in urls)


def _file_name(url):
    return url.rsplit("/", 1)[-1]


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and prepare one data set."""
    parser = Parser(prog="python -m resnet_jax.data.prepare", description=__doc__.splitlines()[0])
    names = ", ".join((*DATASETS, *NAMED))
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"{names}, or another builder of TensorFlow Datasets; cifar10_corrupted and imagenet2012_corrupted stand "
        "for all 75 sets of their benchmarks",
    )
    parser.add_argument("--data_dir", metavar="D", help="root of the prepared data sets (default: TFDS's own)")
    parser.add_argument("--downloads", metavar="DIR", help="folder with the files already fetched; it is only read")
    parser.add_argument("--manual", metavar="DIR", help="folder with the files that must be fetched by hand")
    parser.add_argument("--tfrecord", metavar="D", help="root of data sets prepared as TFRecord files, to convert from")
    with command_line():
        args = parser.parse_args(argv)
        for name in expand_corruptions([args.name]):
            prepare(name, args.data_dir, args.downloads, args.manual, args.tfrecord)


if __name__ == "__main__":
    main()
