"""Says in the log how many images a run had to skip."""

from collections.abc import Iterator

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..datasets.skipped import SkipAccount, Skipped
from ..registry import HOOKS

_EXAMPLES = 3


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """Reports what ``ropim_mm.LoadImage(on_error='skip')`` left out.

    Workers of a data loader have no log file of their own. This hook writes,
    from the main process and for all processes and workers of the training
    data together, a warning after each epoch up to which reads were skipped,
    and a line at the end in any case: the number of reads, of distinct files,
    and the first files with the reasons.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        """Report, if there is anything to."""
        self._report(runner, f'By epoch {runner.epoch + 1}', always=False)

    def after_train(self, runner: Runner) -> None:
        """Report in any case."""
        self._report(runner, 'In this run', always=True)

    @staticmethod
    def _report(runner: Runner, when: str, always: bool) -> None:
        accounts = find_accounts(runner.train_dataloader.dataset)
        mine = sum((account.read() for account in accounts), Skipped())
        # Plain numbers and texts: what is gathered is pickled.
        gathered = all_gather_object(tuple(mine))
        skipped = sum((Skipped(*each) for each in gathered), Skipped())
        if not skipped.reads:
            if always:
                runner.logger.info(f'{when}, no image was skipped.')
            return
        least = '' if skipped.complete else 'at least '
        runner.logger.warning(
            f'{when}, {skipped.reads} reads of unreadable images were '
            f'skipped, of {least}{len(skipped.files)} distinct files, e.g. '
            + '; '.join(skipped.examples[:_EXAMPLES])
        )


def find_accounts(dataset: object) -> Iterator[SkipAccount]:
    """All accounts in the pipelines of a dataset, however wrapped."""
    seen: set[int] = set()
    stack = [dataset]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (list, tuple)):
            stack.extend(item)
            continue
        account = getattr(item, 'skipped', None)
        if isinstance(account, SkipAccount):
            yield account
        for name in ('dataset', 'datasets', 'pipeline', 'transforms'):
            stack.append(getattr(item, name, None))
