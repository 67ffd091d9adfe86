"""Two (or three) real processes over gloo that wait for functions to run, shared by the tests of what
processes do together. Importable by a child process."""

import contextlib, os, tempfile, traceback
from pathlib import Path
import torch
import torch.distributed as dist
import small_run  # noqa: F401, so that a fork server has imported all before it makes children


def serve(rank: int, world: int, store: str, pipe):
    "What each process does: run what comes through the pipe, answer, wait for more."
    torch.set_num_threads(1)
    # as a launcher sets them, for accelerate
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT='29500',
        ACCELERATE_USE_CPU='true',
    )
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world)
    while True:
        job = pipe.recv()
        if job is None:
            break
        function, args = job
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Group:
    "A few processes; calling it runs a function in each and gives back what each returned, in rank order."

    def __init__(self, world: int, folder: Path):
        context = small_run.fork_server('two_processes')
        ends = [context.Pipe() for _ in range(world)]
        self.pipes = [mine for mine, _ in ends]
        self.processes = []
        for rank, (_, theirs) in enumerate(ends):
            arguments = (rank, world, str(folder / 'store'), theirs)
            self.processes.append(context.Process(target=serve, args=arguments, daemon=True))
        for process in self.processes:
            process.start()

    def __call__(self, function, *args):
        for p in self.pipes:
            p.send((function, args))
        answers = []
        for p in self.pipes:
            if not p.poll(1200):
                self.close()
                raise TimeoutError(f"{function.__name__}: the processes wait for each other")
            answers.append(p.recv())
        for good, answer in answers:
            assert good, answer
        return [answer for _, answer in answers]

    def close(self):
        for p in self.pipes:
            with contextlib.suppress(OSError):
                p.send(None)
        for p in self.processes:
            p.join(5)
            p.kill()


@contextlib.contextmanager
def group(world: int):
    "For a fixture: processes that end with it."
    with tempfile.TemporaryDirectory() as folder:
        g = Group(world, Path(folder))
        try:
            yield g
        finally:
            g.close()
