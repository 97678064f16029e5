"""`fit`: a config in, a finished run out; killed at any moment, `resume` reaches the same result."""

import logging
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from simv0.alarm.threshold import choose_alarm
from simv0.config.schema import Config
from simv0.data.contract import Batch
from simv0.data.jsonl import read_jsonl
from simv0.llm.compile import compile_llm
from simv0.model.checkpoint import Checkpoint, Meta, Training, load_checkpoint, save_checkpoint
from simv0.model.metrics import Metrics, Tally, chosen_by, ranking
from simv0.runtime.distributed import any_rank, broadcast_from_rank0, broadcast_tensors, process_group, rank, summed
from simv0.runtime.threads import sharing
from simv0.training.about import describe, introduce
from simv0.training.control import control_config, write_copy
from simv0.training.epoch import LogitsKept, evaluate, train_one_epoch
from simv0.training.epoch_view import batches_shown, every_metric, table_head, table_row
from simv0.training.origin import read_origin, start_from
from simv0.training.recipe import lr_factor, set_stats
from simv0.training.resume import Position, find_checkpoint, restore
from simv0.training.rundir import RunDir, append_line
from simv0.training.splits import no_worker_left
from simv0.training.stopping import Stopped, StopRequest, asked_by_signals
from simv0.training.trackers.follow import STEP_EVERY, followed
from simv0.training.trackers.kinds import check_trackers, trackers_of
from simv0.training.unlike import summarise
from simv0.training.work import Work, open_work

log = logging.getLogger("simv0")


def fit(config: Config, *, overwrite: bool = False, resume: bool = False) -> RunDir:
    """Train as the config says; everything lands in `output.output_dir`.

    Args:
        config: a checked config.
        overwrite: replace an existing run.
        resume: continue the existing run, or start one.

    Raises:
        SimError: errors the user can fix; found before training starts wherever it can be.

    Under torchrun every process takes its share of each batch; the first alone reads and writes the run's folder.
    """
    with process_group():
        return _fit(config, StopRequest(), overwrite, resume)


def _fit(config: Config, request: StopRequest, overwrite: bool, resume: bool) -> RunDir:
    """Train, and then the control if there is to be one: the folder is held until both are done."""
    run = RunDir(config.output.output_dir)
    try:
        checkpoint = broadcast_from_rank0(_claim, run, config, overwrite, resume)
        if checkpoint is not None and checkpoint.meta.epoch == config.training.epochs:
            log.info(
                f"{run.root}: this run is finished ({config.training.epochs} epochs); nothing to do "
                "(more epochs mean another learning-rate cycle: train them in another output.output_dir)"
            )
            check_trackers(config)
            with followed(config, run):  # a kill may have cost them the last points
                pass
        else:
            _train(config, run, checkpoint, request)
        if config.training.llm_control:
            broadcast_from_rank0(write_copy, config)  # where a run that was finished without it is resumed
            log.info("llm_control: the same recipe around a randomised copy of the LLM")
            _fit(control_config(config), request, overwrite=False, resume=True)
    finally:
        run.release()
    return run


def _claim(run: RunDir, config: Config, overwrite: bool, resume: bool) -> Checkpoint | None:
    """Claim the run's folder; returns the checkpoint to resume from, if any."""
    run.claim()
    run.check_asked(overwrite=overwrite, resume=resume)
    checkpoint = find_checkpoint(run, config) if resume else None
    if checkpoint is None:
        run.check_ours()
        if resume:
            log.info(f"{run.root}: no run to resume; starting a new one")
    return checkpoint


def _train(config: Config, run: RunDir, checkpoint: Checkpoint | None, request: StopRequest) -> None:
    check_trackers(config)
    origin = read_origin(config) if checkpoint is None else None
    work = open_work(config, checkpoint, origin)
    model, steps = work.model, config.training.epochs * work.steps
    seconds = compile_llm(
        model.llm, config.training.compile, batch=work.share, tokens=model.tokens, steps=steps, first=model.bos
    )
    if seconds is not None:
        log.info(f"compiled the LLM's blocks in {seconds:.0f} s")
    if checkpoint is None:
        position = Position()
        with sharing():
            set_stats(model, work.train, config)
        if origin is not None:
            start_from(origin, model)
        broadcast_tensors(model.trainable_state())
        broadcast_from_rank0(run.begin, config)
        if config.training.llm_control:
            broadcast_from_rank0(write_copy, config)  # what cannot be copied is refused before the epochs
    else:
        position = restore(checkpoint, run, work)
        broadcast_from_rank0(run.resume, config, position.epoch)
        if rank() > 0:
            position.tally = Tally()  # the first process's goes on; in the end all are added up
    with (
        sharing() if model.llm.trains_beside_one_thread(work.share, model.tokens) else nullcontext(),
        run.log_to_file() if rank() == 0 else nullcontext(),
    ):
        introduce(work, position)
        Epochs(work, run, position, request).run_remaining()


class Epochs:
    """A run under way: what its epochs work with, and what they leave."""

    def __init__(self, work: Work, run: RunDir, position: Position, request: StopRequest) -> None:
        self.work, self.run, self.position, self.request = work, run, position, request
        self.config, self.model, self.optimizer = work.config, work.model, work.optimizer
        self.logits, self.about = LogitsKept(), describe(work)
        writes = rank() == 0  # best.pt
        self.unlike = summarise(self.model, work.train, work.held_out) if writes else None

    def run_remaining(self) -> None:
        """The epochs from `position` on."""
        work, position, training = self.work, self.position, self.config.training
        log.info(table_head())
        with (
            asked_by_signals(self.request),
            no_worker_left(work.batches, *work.judged_on.values()),
            followed(self.config, self.run, self._steps) as self.follower,
        ):
            while position.epoch < training.epochs and not self._gave_up():
                order = work.batches.order
                order.epoch, order.start = position.epoch, position.step
                title = f"epoch {position.epoch + 1}"
                with batches_shown(title, work.steps, position.step, rank() == 0) as self.moved:
                    learnt = train_one_epoch(
                        self.model,
                        work.batches,
                        self.optimizer,
                        work.scaler,
                        work.device,
                        class_weights=work.class_weights,
                        confidence_weight=training.confidence_weight,
                        grad_clip=training.grad_clip,
                        tally=position.tally,
                        before_step=self._before_step,
                        on_loss=self._follow_loss if trackers_of(self.config) else None,
                        after_step=self._after_step,
                    )
                measured = self._judge("val")
                better = ranking(measured, training.best_metric) > position.best
                if better and work.held_out.name != "val":
                    self._judge(work.held_out.name)
                position.epoch, position.step, position.tally = position.epoch + 1, 0, Tally()
                broadcast_from_rank0(self._write_lines, learnt, measured)
                self.follower.epoch(position.epoch, learnt, measured)
                self._end_epoch(measured, better)
                log.info(table_row(position.epoch, learnt, measured, better))
                log.debug(f"{every_metric('train', learnt)}; {every_metric('val', measured)}")
        if self._gave_up() and position.epoch < training.epochs:
            log.info(f"stopped after epoch {position.epoch}: {training.patience} epochs without a new best")
        best = broadcast_from_rank0(load_checkpoint, self.run.best).meta
        epochs = broadcast_from_rank0(read_jsonl, self.run.val_metrics)
        log.info(f"best epoch {best.epoch} (by {chosen_by(best.metrics, epochs, training.best_metric)}); {best.alarm}")

    @property
    def _steps(self) -> int:
        """Finished steps of the run."""
        return self.position.epoch * self.work.steps + self.position.step

    def _before_step(self) -> None:
        seed = self.config.training.seed * 1_000_003 + self._steps
        torch.manual_seed(seed)  # every random draw is a function of (seed, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self._lr_factor

    @property
    def _lr_factor(self) -> float:
        return lr_factor(self._steps, self.config.training.epochs * self.work.steps)

    def _follow_loss(self, loss: float) -> None:
        """Of every so many batches, from all their shares."""
        step = self._steps + 1
        if step % STEP_EVERY == 0:
            whole = summed({"loss": torch.tensor(loss, dtype=torch.float64)})["loss"].item()
            self.follower.step(self.position.epoch + 1, step, whole, self.config.training.lr * self._lr_factor)

    def _after_step(self) -> None:
        self.position.step += 1
        self.moved()
        self._stop_if_asked()
        every = self.config.training.checkpoint_every_steps
        if every and self.position.step % every == 0:
            self._save_last({})
            self._stop_if_asked()

    def _judge(self, name: str) -> Metrics:
        """Evaluate on a split; `logits` are then those of its windows."""
        self.logits.clear()
        batches = self.work.judged_on[name]
        with batches_shown(name, len(batches.order), shown=rank() == 0) as self.moved:
            return evaluate(self.model, batches, self.work.device, on_batch=self._after_judged_batch)

    def _after_judged_batch(self, batch: Batch, logits: dict[str, Tensor]) -> None:
        self.logits.keep(batch, logits)
        self.moved()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if any_rank(self.request.asked is not None):  # not by what one process knows: others would not follow
            self._save_last({})
            raise Stopped(
                f"{self.run.root}: stopped by {self.request.asked or 'a signal'} in epoch {self.position.epoch + 1} "
                f"after step {self.position.step} of {self.work.steps}; the checkpoint is written: continue with "
                "--resume"
            )

    def _end_epoch(self, measured: Metrics, better: bool) -> None:
        """Write best.pt if this epoch is the best one, and last.pt."""
        position, best_metric = self.position, self.config.training.best_metric
        rates = {key: value for key, value in measured.items() if key not in ("seconds", "data_wait_share")}
        position.since_best = 0 if better else position.since_best + 1
        if better:
            position.best = ranking(measured, best_metric)
            broadcast_from_rank0(self._write_best, rates, self.logits.arrays())
        self._save_last(rates, kept=self.config.training.keep_epochs)

    def _gave_up(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self.position.since_best >= patience

    def _save_last(self, metrics: Metrics, kept: bool = False) -> None:
        broadcast_from_rank0(self._write_last, metrics, self.position.tally.whole(), kept)

    def _write_last(self, metrics: Metrics, tally: Tally, kept: bool) -> None:
        state = Training(
            step=self.position.step,
            best=self.position.best,
            since_best=self.position.since_best,
            tally=tally.state(),
            optimizer=self.optimizer.state_dict()["state"],
            scaler=self.work.scaler.state_dict() if self.work.scaler else None,
            digests=self.work.digests,
        )
        about = Meta(**self.about, epoch=self.position.epoch, metrics=metrics, alarm=None)
        content = Checkpoint(meta=about, state=self.model.trainable_state(), training=state)
        if kept:  # first: once last.pt is there, nothing comes back to this epoch
            save_checkpoint(self.run.kept(self.position.epoch), content)
        save_checkpoint(self.run.last, content, previous=self.run.previous)
        log.debug(f"wrote {self.run.last}")

    def _write_best(self, metrics: Metrics, logits: dict[str, np.ndarray]) -> None:
        split = self.work.held_out
        labels, evaluation = split.labels, self.config.evaluation
        name, spacing = self.work.held_out_name, split.frame_spacing
        alarm = choose_alarm(logits, labels.ids, labels.group, evaluation, name, labels.t, spacing)
        about = Meta(**self.about, epoch=self.position.epoch, metrics=metrics, alarm=alarm)
        content = Checkpoint(meta=about, state=self.model.trainable_state(), unlike=self.unlike)
        save_checkpoint(self.run.best, content)
        log.debug(f"wrote {self.run.best}: {alarm}")

    def _write_lines(self, learnt: Metrics, measured: Metrics) -> None:
        append_line(self.run.train_metrics, {"epoch": self.position.epoch, **learnt})
        append_line(self.run.val_metrics, {"epoch": self.position.epoch, **measured})
