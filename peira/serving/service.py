"""The decision service of one folder: decides, takes outcomes, and lets a candidate take over when the gate agrees."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from peira.evaluation.decisions import GateDecision
from peira.serving.background import BackgroundError, in_background
from peira.serving.database import DatabaseError, Verdict, open_database
from peira.serving.deployment import (
    CANDIDATES,
    POLICY,
    Deployed,
    decide,
    install,
    policy_in_force,
    read_policy,
    read_schema,
    stamp_of,
)
from peira.serving.matured import compact, judge
from peira.serving.metrics import Metrics
from peira.serving.options import Options
from peira.serving.recorder import Recorder
from peira.serving.requests import DecideRequest, OutcomeRequest, RequestError, SwapRequest

WATCH_SECONDS = 1.0

Judge = Callable[[Path, Options, str, float], GateDecision]


class Service:
    """Serves DIR until `close`. `start` begins what runs beside the answers, in the event loop that is running.

    Raises ValueError for a folder without schema or with a damaged policy, and DatabaseError.
    """

    def __init__(self, folder: Path, options: Options, console: Console, judge: Judge = judge) -> None:
        self.folder, self.options, self._console, self._judge = folder, options, console, judge
        self.schema = read_schema(folder)
        self.deployed = policy_in_force(folder, self.schema)
        self.metrics = Metrics()
        self.metrics.policy_version.set(self.deployed.policy.version)
        # Nobody outside can choose an event id by the action that it would draw.
        self._seed = secrets.randbits(63)
        self._swapping, self._judging = asyncio.Lock(), False
        self._beside: set[asyncio.Task] = set()
        database = open_database(options.database, folder)
        try:
            database.bind(self.schema)
        except BaseException:
            database.close()
            raise
        self._recorder = Recorder(
            database,
            lambda requests, now: decide(self.deployed, self.schema, requests, self._seed, now),
            self.metrics,
            window=options.window,
            most_waiting=options.most_waiting,
        )

    def start(self) -> None:
        self._beside.add(asyncio.create_task(self._watch()))
        if self.options.compact_minutes:
            self._beside.add(asyncio.create_task(self._compact()))

    async def stop(self) -> None:
        """End what runs beside the answers."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    def close(self) -> None:
        """Answer what waits and let go of the database."""
        self._recorder.close()

    async def decide(self, request: DecideRequest) -> dict[str, Any]:
        row = await self._recorder.decide(request)
        return {
            "event_id": row.event_id,
            "action": row.action,
            "index": row.chosen_index,
            "propensity": row.propensity,
            "policy_id": row.policy_id,
            "policy_version": row.policy_version,
            "slice": row.slice,
        }

    async def receive(self, request: OutcomeRequest) -> tuple[int, dict[str, Any]]:
        """HTTP status and answer: 200 stored or known already, 202 late, 404 for an event that was never decided."""
        verdict: Verdict = await self._recorder.receive(request)
        if verdict.status == "unknown":
            raise RequestError(404, f"event_id: {request.event_id!r} was not decided here, or too long ago")
        answer: dict[str, Any] = {"event_id": request.event_id, "status": verdict.status}
        if verdict.status == "late":
            answer["late"] = True
        if request.time is not None and request.time < verdict.decided:
            answer["before_decision"] = True
        return 202 if verdict.status == "late" else 200, answer

    def about(self) -> dict[str, Any]:
        """The policy that decides."""
        deployed = self.deployed
        return {
            "policy_id": deployed.policy.id,
            "policy_version": deployed.policy.version,
            "config_hash": deployed.config_hash,
            "explorer": deployed.kind,
            "oracle": None if deployed.policy.oracle is None else deployed.policy.oracle.name,
            "gamma": deployed.policy.gamma,
            "labelled": deployed.policy.labelled,
            "schema_hash": self.schema.hash,
            "actions": self.schema.actions,
        }

    async def swap(self, request: SwapRequest) -> dict[str, Any]:
        """Put the candidate in force, and say why.

        RequestError 409 where the gate refuses it, 404 where it is not there, 422 where its files are damaged.
        """
        if self._judging:
            raise RequestError(409, "candidate: another one is being judged; try again when it is done")
        self._judging = True
        try:
            async with self._swapping:
                reasons = await self._swap(request)
        except RequestError:
            self.metrics.swaps.labels("refused").inc()
            raise
        finally:
            self._judging = False
        self.metrics.swaps.labels("forced" if request.force else "passed").inc()
        return {**self.about(), "reasons": reasons}

    async def _swap(self, request: SwapRequest) -> list[str]:
        place = self.folder / CANDIDATES / request.candidate
        if not place.is_dir():
            raise RequestError(404, f"candidate: there is no folder {CANDIDATES}/{request.candidate}")
        try:
            proposed = await asyncio.to_thread(read_policy, place, self.schema)
        except ValueError as fault:
            raise RequestError(422, str(fault)) from None
        now = self.deployed
        if proposed.policy.version == now.policy.version and proposed.config_hash != now.config_hash:
            raise RequestError(
                422,
                f"candidate: it has version {now.policy.version} as the policy in force; give every policy its own",
            )
        reasons = ["forced"]
        if not request.force:
            # Without a word on what the candidate has learned from, only what came after it was saved is new to it.
            since = proposed.stamp[2] / 1e9 if request.since is None else request.since
            try:
                said = await in_background(self._judge, self.folder, self.options, request.candidate, since)
            except (ValueError, DatabaseError, BackgroundError) as fault:
                raise RequestError(503, f"gate: {fault}") from fault
            if not said.passed:
                raise RequestError(409, f"gate: {'; '.join(said.reasons)}")
            reasons = said.reasons
        await asyncio.to_thread(install, self.folder, place)
        self._deploy(await asyncio.to_thread(policy_in_force, self.folder, self.schema))
        return reasons

    def _deploy(self, deployed: Deployed) -> None:
        self.deployed = deployed
        self.metrics.policy_version.set(deployed.policy.version)
        self._say(f"policy {deployed.policy.id} version {deployed.policy.version} decides")

    async def _watch(self) -> None:
        """Take up a policy that another service of this folder, or a person, put in force."""
        refused = None
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            stamp = stamp_of(self.folder / POLICY)
            if stamp in (None, self.deployed.stamp, refused):
                continue
            async with self._swapping:
                try:
                    found = await asyncio.to_thread(read_policy, self.folder / POLICY, self.schema)
                except (ValueError, OSError) as fault:
                    refused = stamp
                    self.metrics.faults.labels("policy").inc()
                    self._say(f"{fault}; version {self.deployed.policy.version} goes on deciding")
                    continue
                if found.stamp != self.deployed.stamp:
                    self._deploy(found)

    async def _compact(self) -> None:
        while True:
            await asyncio.sleep(60 * self.options.compact_minutes)
            try:
                self.metrics.compacted.inc(await in_background(compact, self.folder, self.options))
            except (ValueError, OSError, RuntimeError) as fault:  # It is tried again the next time.
                self.metrics.faults.labels("compaction").inc()
                self._say(f"compaction: {fault}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
