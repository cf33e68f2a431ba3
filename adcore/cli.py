"""The command line.

`adcore doctor | data | weights | run | measure | remeasure | checkpoints | refresh | reproduce | report | results | bench`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import adcore
from adcore.errors import AdcoreError, ParameterError


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 on success, 2 after an error that the user can fix (one line on stderr)."""
    arguments = _parser().parse_args(words)
    if getattr(arguments, "again", False):
        os.environ["ADCORE_AGAIN"] = "1"  # also for the kernels of notebooks
    try:
        return int(arguments.command(arguments) or 0)
    except AdcoreError as error:
        print(f"adcore: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the program that reads our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("adcore: interrupted; finished results are kept: run the same command again to continue", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adcore", description=adcore.__doc__.splitlines()[0] if adcore.__doc__ else "")
    parser.add_argument("--version", action="version", version=f"adcore {adcore.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    doctor = commands.add_parser("doctor", help="check Python, torch, device, weights and data")
    doctor.set_defaults(command=_doctor)

    data = commands.add_parser("data", help="data sets: list | path | fetch | verify | export")
    actions = data.add_subparsers(required=True, metavar="action")
    listing = actions.add_parser("list", help="list all data sets and where they are")
    listing.set_defaults(command=_data_list)
    path = actions.add_parser("path", help="print the folder of a data set")
    path.add_argument("name", help="a name, or the path of a folder or csv file")
    path.set_defaults(command=_data_path)
    fetch = actions.add_parser("fetch", help="download a data set, or take it from a local file, and install it")
    fetch.add_argument("name")
    fetch.add_argument("--from", dest="source", type=Path, metavar="FILE", help="local archive or folder to use instead")
    fetch.add_argument("--to", type=Path, metavar="FOLDER", help="destination (default: the first folder of ADCORE_DATA)")
    fetch.set_defaults(command=_data_fetch)
    verify = actions.add_parser("verify", help="read every image and mask of a data set, or check its archive")
    verify.add_argument("name", help="a name, or the path of a folder or csv file")
    verify.add_argument("--file", type=Path, help="check this archive against the manifest instead")
    verify.set_defaults(command=_data_verify)
    export = actions.add_parser("export", help="print the manifest in a format of other tools")
    export.add_argument("name", nargs="?", help="with --croissant: only this data set")
    formats = export.add_mutually_exclusive_group(required=True)
    formats.add_argument("--croissant", action="store_true", help="data sets as Croissant 1.0 (JSON-LD)")
    formats.add_argument("--pooch", action="store_true", help="files as a pooch registry: file, hash, URL")
    export.set_defaults(command=_data_export)

    weights = commands.add_parser("weights", help="checkpoints: list | path | verify | fetch")
    actions = weights.add_subparsers(required=True, metavar="action")
    listing = actions.add_parser("list", help="list all checkpoints of the manifest and where they are")
    listing.set_defaults(command=_weights_list)
    for action, text, command in (("path", "print the path of a checkpoint", _weights_path),
                                  ("verify", "check a checkpoint against the manifest", _weights_verify),
                                  ("fetch", "download a checkpoint and check it", _weights_fetch)):
        sub = actions.add_parser(action, help=text)
        sub.add_argument("name")
        sub.set_defaults(command=command)

    run = commands.add_parser("run", help="execute a notebook after checking its parameters")
    run.add_argument("notebook", help="path, or a name such as uniad2022/01_architecture")
    run.add_argument("-p", dest="parameters", action="append", default=[], metavar="name=value")
    run.add_argument("-o", "--output", type=Path, help="executed copy (default: in the runs folder)")
    run.add_argument("--record", type=Path, help="JSON file written after a successful run")
    _add_again(run)
    run.set_defaults(command=_run)

    measure = commands.add_parser("measure", help="run one method on one data set and print its table",
                                  epilog="UniAD, its baselines, DS2 and CutPaste also train on several GPUs: torchrun "
                                         "--nproc-per-node 8 -m adcore measure ... On CPUs several processes train UniAD and "
                                         "its baselines without batch norm.")
    measure.add_argument("method")
    measure.add_argument("--dataset", default="mini", help="a name, a folder in MVTec layout, or a csv of images")
    measure.add_argument("--categories", nargs="*", default=[], help="default: all")
    measure.add_argument("--seeds", nargs="+", type=int, default=[0])
    measure.add_argument("--profile", default="quick", help="quick, open or paper")
    measure.add_argument("--device", default="auto")
    measure.add_argument("-p", dest="settings", action="append", default=[], metavar="setting=value")
    _add_again(measure)
    measure.set_defaults(command=_measure)

    refresh = commands.add_parser("refresh", help="execute notebooks in place, to renew their committed outputs")
    refresh.add_argument("notebooks", nargs="*", help="which (default: all)")
    refresh.set_defaults(command=_refresh)

    reproduce = commands.add_parser("reproduce", help="run notebooks, here or on a cluster, then write the report")
    reproduce.add_argument("--exhibit", dest="exhibits", action="append", default=[], metavar="ID",
                           help="only the notebook of this table or figure, such as uniad2022.table_s2; may be repeated")
    reproduce.add_argument("--profile", help="quick (default), open or paper: the grid with that name")
    reproduce.add_argument("--grid", help="another grid: a name in workflow/grids, or the path of a .yaml file")
    reproduce.add_argument("--on", default="local", metavar="PLACE",
                           help="local (default), slurm, kubernetes, or the folder of a Snakemake profile")
    reproduce.add_argument("--cores", help="number of cores (default: as set for the place; locally, all)")
    reproduce.add_argument("--minutes", type=float,
                           help="stop in time with all work saved; the same command goes on. For borrowed and spot machines")
    instead = reproduce.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="list the notebook runs without running them")
    instead.add_argument("--plan", action="store_true", help="list the experiments, their requirements and estimated hours")
    _add_again(reproduce)
    reproduce.set_defaults(command=_reproduce)

    report = commands.add_parser("report", help="write report/index.html from the results store and the executed notebooks")
    report.add_argument("--to", type=Path, help="folder (default: report)")
    report.add_argument("--readme", action="store_true", help="also rewrite the README's table and figure from results/")
    report.set_defaults(command=_report)

    results = commands.add_parser("results", help="export the stored numbers, with their provenance, as csv")
    results.add_argument("--dataset", help="only this data set")
    results.add_argument("--profile", help="only this profile")
    results.add_argument("--to", type=Path, help="csv file to write (default: print)")
    results.set_defaults(command=_results)

    remeasure = commands.add_parser("remeasure", help="measure a csv of results/ again with today's code")
    remeasure.add_argument("name", help="such as few_shot")
    remeasure.add_argument("--only", action="append", default=[], metavar="column=value",
                           help="only these rows, such as method=dra or category=screw; may be repeated")
    remeasure.add_argument("--device", default="auto")
    remeasure.set_defaults(command=_remeasure)

    checkpoints = commands.add_parser("checkpoints", help="train the networks of results/checkpoints again")
    checkpoints.add_argument("names", nargs="*", help="which (default: all)")
    checkpoints.add_argument("--device", default="auto")
    checkpoints.set_defaults(command=_checkpoints)

    bench = commands.add_parser("bench", help="time adcore against other libraries, into benchmarks/results.csv")
    bench.add_argument("names", nargs="*", help="which benchmarks (default: all)")
    bench.set_defaults(command=_bench)
    return parser


def _add_again(command: argparse.ArgumentParser) -> None:
    command.add_argument("--again", action="store_true",
                         help="replace stored results of other code, data or weights; the old files are kept as *.replaced-N")


def _doctor(_: argparse.Namespace) -> int:
    from adcore.doctor import examine
    return 0 if examine() else 1


def _data_list(_: argparse.Namespace) -> None:
    from adcore.data import DATASETS, find_dataset
    from adcore.data.manifest import load_manifest
    for entry in load_manifest().values():
        if entry.kind == "dataset":
            folder = "embedded" if entry.name == "mini" else find_dataset(entry.name)
            reader = "" if entry.name in DATASETS else " (no reader yet)"
            print(f"{entry.name:<14} {folder or 'not here: ' + entry.url}{reader}")


def _data_path(arguments: argparse.Namespace) -> None:
    from adcore.data.verify import dataset_folder
    print(dataset_folder(arguments.name))


def _data_verify(arguments: argparse.Namespace) -> None:
    from adcore.data.manifest import check, entry, unverified
    from adcore.data.verify import verify_dataset
    if arguments.file is not None:
        check(row := entry(arguments.name), arguments.file)
        why = unverified(row)
        print(f"{arguments.file} is {why}" if why else f"{arguments.file} matches the manifest's entry for {arguments.name}")
    else:
        print(verify_dataset(arguments.name))


def _data_fetch(arguments: argparse.Namespace) -> None:
    from adcore.data.fetch import fetch
    from adcore.data.manifest import entry
    print(fetch(arguments.name, arguments.source, arguments.to))
    dataset = entry(arguments.name)
    print(f"license: {dataset.license}\ncite: {dataset.citation}")


def _data_export(arguments: argparse.Namespace) -> None:
    from adcore.data.export import croissant, pooch_registry
    if arguments.pooch and arguments.name:
        raise ParameterError("a pooch registry always lists all files: remove the name")
    print(pooch_registry() if arguments.pooch else json.dumps(croissant(arguments.name), indent=2, ensure_ascii=False) + "\n",
          end="")


def _weights_list(_: argparse.Namespace) -> None:
    from adcore.data.manifest import load_manifest
    from adcore.features import find_weights
    for entry in load_manifest().values():
        if entry.kind == "weights":
            try:
                place = str(find_weights(entry.name))
            except AdcoreError:
                place = f"not here: {entry.url}"
            print(f"{entry.name:<26} {place}")


def _weights_path(arguments: argparse.Namespace) -> None:
    from adcore.features import find_weights
    print(find_weights(arguments.name))


def _weights_verify(arguments: argparse.Namespace) -> None:
    from adcore.data.manifest import check, entry, unverified
    from adcore.features import find_weights, read_checkpoint
    path, row = find_weights(arguments.name), entry(arguments.name)
    check(row, path)
    print(f"{path.name}: {len(read_checkpoint(path))} tensors, {unverified(row) or 'file matches the manifest'}")


def _weights_fetch(arguments: argparse.Namespace) -> None:
    from adcore.features.weights import fetch_weights
    print(fetch_weights(arguments.name))


def _run(arguments: argparse.Namespace) -> None:
    from adcore.distributed import launched
    from adcore.notebook import find_notebook, notebook_name, parse_assignments, run_notebook
    from adcore.paths import runs_folder
    if launched():
        raise ParameterError("a notebook runs in one process: under torchrun use `adcore measure`; the notebook then finds its "
                             "results in the runs folder")
    path = find_notebook(arguments.notebook)
    output = arguments.output or runs_folder() / "notebooks" / notebook_name(path) / "run.ipynb"
    print(run_notebook(path, parse_assignments(arguments.parameters), output, record=arguments.record))


def _measure(arguments: argparse.Namespace) -> None:
    from adcore.distributed import is_rank_zero, process_group
    from adcore.experiments import as_tuples, grid, run
    from adcore.models import METHODS
    from adcore.parameters import parse_settings
    defaults = METHODS[arguments.method].Config().values() if arguments.method in METHODS else {}
    settings = as_tuples(parse_settings(arguments.settings, defaults))
    with process_group():
        table = run(grid(arguments.method, dataset=arguments.dataset, categories=arguments.categories, seeds=arguments.seeds,
                         profile=arguments.profile, **settings), device=arguments.device)
        if not is_rank_zero():
            return
    print(table)
    for metric in dict.fromkeys(table.frame.metric):
        print(f"\n{metric}, percent\n{table.by_category(metric).round(1).to_string()}")


def _refresh(arguments: argparse.Namespace) -> None:
    from adcore.notebook import all_notebooks, refresh
    for name in arguments.notebooks or all_notebooks():
        path = refresh(name)
        print(f"{path} ({path.stat().st_size / 1e3:.0f} KB)")


def _reproduce(arguments: argparse.Namespace) -> int:
    from adcore.reproduce import grid_named, reproduce
    grid = grid_named(arguments.grid, arguments.profile)
    if arguments.plan:
        from adcore.grids import jobs_for, load_grid
        from adcore.plan import plan
        print(plan(jobs_for(load_grid(grid), arguments.exhibits)))
        return 0
    return reproduce(grid, arguments.cores, arguments.on, arguments.exhibits, dry_run=arguments.dry_run,
                     minutes=arguments.minutes)


def _report(arguments: argparse.Namespace) -> None:
    from adcore.report import score_card, write_report
    if arguments.readme:
        from adcore.report.readme import rewrite_readme
        rewrite_readme()
    path = write_report(arguments.to)
    print(score_card())
    print(f"report: {path}")


def _results(arguments: argparse.Namespace) -> None:
    from adcore.experiments.record import export_results
    print(export_results(arguments.dataset, arguments.profile, arguments.to))


def _remeasure(arguments: argparse.Namespace) -> None:
    from adcore.experiments.remeasure import remeasure
    from adcore.parameters import parse_assignments
    only = {column: str(value) for column, value in parse_assignments(arguments.only).items()}
    print(remeasure(arguments.name, only, device=arguments.device))


def _checkpoints(arguments: argparse.Namespace) -> None:
    from adcore.experiments.networks import train_networks
    for line in train_networks(arguments.names, device=arguments.device):
        print(line)


def _bench(arguments: argparse.Namespace) -> int:
    from adcore.reproduce import bench
    return bench(arguments.names)


if __name__ == "__main__":
    sys.exit(main())
