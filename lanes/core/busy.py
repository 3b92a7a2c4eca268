"""The runs in the way of a request, by its policy (`when_busy`, `debounce`). `intake` acts on what is found here."""

from __future__ import annotations

from collections.abc import Iterable

from locks import _clock

from ..errors import LaneBusy
from ..message import same_route
from ..spec import ONLY_NEWEST, WhenBusy
from .board import Board
from .execution import Execution
from .needs import Kind, Need, busy
from .request import Request

_SHARING = ("collect", "steer")


class Busy:
    """What is in the way of requests. Nothing here changes anything but the request."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def compare_routes(self, request: Request, policy: WhenBusy) -> None:
        """Note which runs it may share a route with. Before the change, since comparing two routes is user code.

        A run that comes up only because of what that code does was not compared, and shares nothing.
        """
        if (policy in _SHARING or request.spec.debounce) and request.route is not None:
            candidates = (self._underway(request), self._last(request))
            request.same_route = {one for one in candidates if one is not None and same_route(one.route, request.route)}

    def is_busy(self, request: Request) -> bool:
        """Whether it would wait in its session, or, without one, on its lane."""
        return busy(self._board, request.lane, request.file) is not None

    def refuse(self, request: Request) -> None:
        """Refuse what would have to wait.

        Raises:
            LaneBusy: it would.
        """
        if (need := busy(self._board, request.lane, request.file)) is not None:
            raise _lane_busy(request, need)

    def target(self, request: Request, policy: WhenBusy) -> Execution | None:
        """The run that the policy turns to: to take its place, or to hand it the message."""
        if policy == "interrupt":
            if request.file is None and self.outdated(request, policy):
                return None  # it takes the place of the run that waits, for which another one has been ended already
            return self._underway(request) if request.conducts() else None
        if policy != "steer" or request.messages is None:
            return None
        target = self._underway(request)
        if target is None or target.run.session != request.session or not request.shares_route(target):
            return None
        return target

    def outdated(self, request: Request, policy: WhenBusy) -> list[Execution]:
        """The runs that wait where the request would, and that a newer one of their policy supersedes.

        A reset, the next attempt of a run, and what an inbox was left with have no such policy.
        """
        if policy not in ONLY_NEWEST or not request.conducts():
            return []
        if request.file is not None:
            waiting: Iterable[Execution] = self._board.turns.of(request.file)
        else:
            waiting = (one for one in request.lane.queued if one.run.session is None)
        return [one for one in waiting if one.policy == policy and one.is_queued()]

    def _underway(self, request: Request) -> Execution | None:
        """The run that is under way where the request would have to wait, and was not asked to end yet."""
        if request.file is not None:
            front = self._board.turns.front(request.file)
            return front if front is not None and front.is_underway() else None
        if not self.is_busy(request):
            return None
        return next((one for one in request.lane.running if one.is_underway() and not request.is_below(one)), None)

    def joinable(self, request: Request, policy: WhenBusy) -> Execution | None:
        """The run that waits last in its session, if that one may answer its message as well."""
        lane, now = request.lane, _clock.clock.now()
        last = self._last(request)
        if (
            last is None
            or not last.is_queued()
            or last.lane is not lane
            or last.messages is None
            or last.answer_id  # an answer is alone in its run
            or last.steered_into is not None
            or last.run.attempt > 1
            or last.run.session != request.session
            or (last.timeout, last.given_urgency) != (request.timeout, request.urgency)
            or (policy != "collect" and last.held_until <= now)
            or not self._may_share(request, policy, last)
            or not request.shares_route(last)
        ):
            return None
        limit = lane.spec.queue_limit
        if limit is not None and lane.waiting >= max(limit, 1):
            return None  # as much as one more run would be: the queue's limit decides
        return last

    def _last(self, request: Request) -> Execution | None:
        """The last of the runs that the request would wait behind."""
        if request.file is not None:
            return self._board.turns.last(request.file)
        return next(reversed(request.lane.queued), None) if request.lane.queued else None

    def _may_share(self, request: Request, policy: WhenBusy, last: Execution) -> bool:
        """Whether joining the last run keeps the policy: `reject` waits for no run, `interrupt` goes next.

        What a newer message may supersede is joined under the same policy only.
        """
        if policy == last.policy and policy in ONLY_NEWEST:
            return True
        if last.policy in ONLY_NEWEST:
            return False
        if policy not in ("reject", "interrupt"):
            return True
        if request.file is not None:
            return self._board.turns.front(request.file) is last
        return not self.is_busy(request)


def _lane_busy(request: Request, need: Need) -> LaneBusy:
    front = need.runs[0] if need.kind is Kind.TURN else None
    if front is not None:
        waits = "waits for" if front.is_queued() else "has"
        why = f"{front.fence.holder} {waits} the turn of session {request.session!r:.80}"
    else:
        why = f"{len(need.any_of)} of {request.spec.capacity} run on it"
    return LaneBusy(
        f"lane {request.lane.name!r} is busy: {why}",
        lane=request.lane.name,
        session=request.session,
        holder=front.run.id if front is not None else None,
    )
