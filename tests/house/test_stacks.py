"""Stacks that asyncio's debug mode keeps."""

from __future__ import annotations

import asyncio
import traceback

import pytest


def here() -> traceback.StackSummary:
    return traceback.extract_stack()


def test_a_stack_names_file_line_function_and_source():
    innermost = here()[-1]
    assert (innermost.filename, innermost.name) == (__file__, "here")
    assert innermost.line == "return traceback.extract_stack()"
    assert here()[-2].name == "test_a_stack_names_file_line_function_and_source"


def test_a_stack_has_as_many_frames_as_are_asked_for_innermost_last():
    assert [frame.name for frame in traceback.extract_stack(limit=1)] == [
        "test_a_stack_has_as_many_frames_as_are_asked_for_innermost_last"
    ]


@pytest.mark.backends("asyncio", "uvloop")
async def test_what_asyncio_says_of_a_lost_task_tells_where_it_was_made():
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: said.append(context))
    future = loop.create_future()
    future.set_exception(ValueError("nobody asks"))
    del future
    (context,) = said
    assert f'File "{__file__}"' in "".join(context["source_traceback"].format())
    assert "future = loop.create_future()" in "".join(context["source_traceback"].format())
