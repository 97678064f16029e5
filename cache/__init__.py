"""cache-vis: a dataset and an encoder in, feature files out. `from cache import cache_vis`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.pipeline import Cached
    from simv0.config.load import ConfigLike


def cache_vis(
    config: "ConfigLike", *, overwrite: bool = False, verify: bool = False, overrides: Sequence[str] = ()
) -> "Cached":
    """Run the vision encoder once over all splits and write their feature files, as `simv0 cache-vis` does.

    Finished work is kept: called again, it resumes, or finds that there is nothing to do.

    Args:
        config: the path of a YAML file, or its sections as a dict; relative paths in either are relative to the current
            folder.
        overwrite: start over.
        verify: read every frame again; otherwise those that have been read, and whose size and times are as they were,
            are taken to be the same.
        overrides: `section.key=value`, a text each: what `--set` takes.

    Raises:
        SimError: what the user can fix.
    """
    from simv0.config.load import as_config
    from simv0.runtime.speaking import called_from_python

    with called_from_python():
        from simv0.training.refusals import check_split_paths

        loaded = as_config(config, overrides)
        check_split_paths(loaded)
        from cache.pipeline import Cached, complete_already
        from cache.pipeline import cache_vis as write_features

        reports = None if overwrite or verify else complete_already(loaded)
        if reports is None:
            from simv0.checks.run import preflight

            preflight(loaded, "cache-vis")
            reports = write_features(loaded, overwrite=overwrite, verify=verify)
        return Cached({report.split: report for report in reports})
