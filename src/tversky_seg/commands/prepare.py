"""Prepare the cases of a data set, or a share of them, before a training."""

import re
from pathlib import Path

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.data.case import Case
from tversky_seg.data.dataset import find_cases, with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.lesion_load import count_volumes
from tversky_seg.data.preprocessing.case_cache import load_cached
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocessing_of
from tversky_seg.report.labels import count


def prepare(cfg: DictConfig) -> int:
    """Fill the cache for a share of the cases; 1 where some of them cannot be prepared."""
    number, n_shares = parse_shard(cfg.shard)
    data = with_modalities(config.build(cfg, "data"))
    cases = find_cases(data)
    # Of all cases, since the voxel size of most of them is that of the training.
    preprocessing = preprocessing_of(data, cases)
    share = cases[number - 1 :: n_shares]
    n_before = count_cached(share, preprocessing, data.cache_dir)
    failed: tuple[DataError, ...] = ()
    try:
        prepare_all(share, preprocessing, cache_dir=data.cache_dir, n_workers=cfg.n_workers)
    except DataError as fault:
        failed = fault.faults
        if len(failed) >= len(share):
            raise
    if data.stratify:
        count_volumes(share, cache_dir=data.cache_dir, part=f"{number}-of-{n_shares}")
    for one_fault in failed:
        config.logger.error("%s", one_fault)
    n_new = len(share) - n_before - len(failed)
    print(
        f"share {number} of {n_shares}: {count(len(share), 'case')}, {n_new} prepared, "
        f"{n_before} from the cache, {len(failed)} failed; {data.cache_dir}"
    )
    return 1 if failed else 0


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Read "3/20" as share 3 of 20; None is the whole.

    Raises:
        ConfigError: It is no share, or one past the last.
    """
    if shard is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if match is not None:
        number, n_shares = int(match[1]), int(match[2])
        if 1 <= number <= n_shares:
            return number, n_shares
    raise config.ConfigError(f"shard: {shard}; expected k/n as in 3/20, k from 1 to n")


def count_cached(cases: list[Case], preprocessing: Preprocessing, cache_dir: Path) -> int:
    """Count the cases that are in the cache already; one that cannot be looked up is not."""
    n_cached = 0
    for case in cases:
        try:
            cached = load_cached(case, preprocessing, cache_dir=cache_dir)
        except DataError:
            continue
        n_cached += cached is not None
    return n_cached
