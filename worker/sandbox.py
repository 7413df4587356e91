"""Owns what a child process may do: the restrictions that it puts on itself before it opens anything.

A TorchScript file is a program, so whoever opens one runs it. The child therefore gives up, for good
and before it reads a byte of the upload, everything a compression job does not need: other files,
the network, other programs, other processes and the privileges of root. Landlock guards the file
system, TCP ports and signals; seccomp guards the rest of the kernel's surface; rlimits bound what is left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import site
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["standard", "weak", "none"]
"""`standard`: Landlock and seccomp; `weak`: seccomp alone; `none`: neither could be shown to hold."""

MAX_FILE_BYTES = 64 * 2**30
MAX_OPEN_FILES = 1024
_MAX_THREADS = 1024

# -- the parent's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Confinement:
    """What this machine can hold a child to, as shown by running the canaries."""

    level: Level
    uid: int | None = None
    """The unprivileged user that children become; None: they keep the worker's."""

    def in_words(self) -> str:
        """For logs and for the person who follows a job."""
        guards = {"standard": f"Landlock {landlock_abi()}, seccomp, ", "weak": "seccomp, ", "none": ""}[self.level]
        user = f"as user {self.uid}" if self.uid is not None else "as the worker's user"
        return f"{self.level} ({guards}{user})"


def make_scratch(folder: Path, uid: int | None) -> None:
    """The folders of one child: it reads `in`, and writes `out`, `checkpoints` and `tmp`."""
    folder.chmod(0o711 if uid is not None else 0o700)
    for name in ("in", "out", "checkpoints", "tmp"):
        (folder / name).mkdir(mode=0o700)
        if uid is not None and name != "in":
            os.chown(folder / name, uid, uid)
    if uid is not None:
        (folder / "in").chmod(0o755)


def kill_session(session: int, number: signal.Signals) -> None:
    """Signal every process of a session that this process started and has not yet waited for."""
    for _ in range(20):
        # Processes that a member forked meanwhile are met on the next round.
        living = [pid for pid, _ in session_members(session)]
        for pid in living or [session]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number != signal.SIGKILL or not living:
            return


def session_members(session: int) -> list[tuple[int, int]]:
    """(process id, resident bytes) of each living process of a session."""
    members = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            # After the name, which may itself hold blanks and brackets: state, parent, group, session, …
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in {b"Z", b"X"}:
                members.append((int(entry.name), int(fields[21]) * resource.getpagesize()))
    return members


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


# -- the child's side ---------------------------------------------------------------------------


def restrict(level: Level, *, folder: Path, parent: int, memory_bytes: int, gpu: bool, card: int | None = None) -> None:
    """Confine this process for good.

    Args:
        level: what must hold; anything that fails raises.
        folder: the scratch folder: `in` stays readable; `out`, `checkpoints` and `tmp` writable.
        parent: the process that this one must not outlive.
        memory_bytes: the job's memory limit.
        gpu: whether it may use the GPUs, with the few rights more that CUDA does not start without.
        card: N of /dev/nvidiaN, the only one whose file it may open; None: those of all.

    Raises:
        OSError: a part of the level could not be put in place.
        RuntimeError: threads run already, which Landlock would leave unconfined, or the parent is gone.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("the sandbox must be entered before the first thread starts")
    _end_with(parent)
    _limit_resources(memory_bytes, gpu=gpu)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    if level == "standard":
        _landlock(folder, gpu=gpu, card=card)
    if level != "none":
        _seccomp(gpu=gpu)


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however that ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Meanwhile, this process becomes the parent of every process below it whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def name_process(name: str) -> None:
    """What `ps` and `top` call this process; at most 15 bytes."""
    _prctl(_PR_SET_NAME, ctypes.cast(ctypes.c_char_p(name.encode()), ctypes.c_void_p).value or 0)


def hide_from_others() -> None:
    """Keep this process's memory and environment from other processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _end_with(parent: int) -> None:
    end_with_parent()
    if os.getppid() != parent:
        raise RuntimeError("the parent ended before the sandbox was ready")


def _limit_resources(memory_bytes: int, *, gpu: bool) -> None:
    # The exact limit is the parent's watch over resident memory. This one stops a single huge
    # allocation between two looks; CUDA reserves far more address space than it uses.
    data = resource.RLIM_INFINITY if gpu else memory_bytes + 4 * 2**30
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: data,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if os.getuid() == NOBODY:
        # Counted over all processes of a user, so only of use for one that runs nothing else.
        limits[resource.RLIMIT_NPROC] = _MAX_THREADS
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        bound = (
            limit if hard == resource.RLIM_INFINITY else hard if limit == resource.RLIM_INFINITY else min(limit, hard)
        )
        resource.setrlimit(kind, (bound, bound))


NOBODY = 65534

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_CAPBSET_DROP = 1, 4, 15, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int, third: int = 0) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), 0, 0):
        raise _last_error("prctl")


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _drop_capabilities() -> None:
    """Root without capabilities is an ordinary user that happens to own root's files."""
    for capability in range(64):
        with suppress(OSError):  # unknown to this kernel, or not ours to drop
            _prctl(_PR_CAPBSET_DROP, capability)
    with suppress(OSError):
        _prctl(_PR_CAP_AMBIENT, 4)  # clear all
    header = struct.pack("=Ii", 0x20080522, 0)
    if _libc.capset(header, struct.pack("=6I", *[0] * 6)):
        raise _last_error("capset")


# -- Landlock -----------------------------------------------------------------------------------

_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_TRUNCATE, _FS_IOCTL_DEV = 1 << 14, 1 << 15
_READ = _FS_READ_FILE | _FS_READ_DIR
_ON_FILES = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV
# Remove and make files and folders, truncate, and rename from one folder to another.
_WRITE = _READ | _FS_WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | _FS_TRUNCATE
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture


def landlock_abi() -> int:
    """The version of Landlock this kernel speaks; 0: none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, 1)))


def _landlock(folder: Path, *, gpu: bool, card: int | None) -> None:
    abi = landlock_abi()
    if not abi:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no Landlock")
    # Everything an ABI knows is handled, which means denied where no rule allows it.
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0  # TCP bind and connect
    scopes = 0b11 if abi >= 6 else 0  # abstract unix sockets and signals
    attributes = struct.pack("=QQQ", handled, network, scopes)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        raise _last_error("landlock_create_ruleset")
    for path in _readable(gpu=gpu):
        _allow(ruleset, path, _READ & handled)
    _allow(ruleset, folder / "in", _READ & handled, needed=True)
    for name in ("out", "checkpoints", "tmp"):
        _allow(ruleset, folder / name, _WRITE & handled, needed=True)
    _allow(ruleset, Path(os.devnull), (_FS_READ_FILE | _FS_WRITE_FILE) & handled)
    if gpu:
        for path in gpu_devices(card):
            _allow(ruleset, path, (_FS_READ_FILE | _FS_WRITE_FILE | _FS_IOCTL_DEV) & handled)
        # CUDA names its threads, through task/<thread>/comm, and does not start where it may not. The rule is taken
        # here, in the child, so it holds for its own threads. What else lies there is guarded by the kernel: see
        # docs/decisions/0012-what-a-gpu-adds-to-the-sandbox.md.
        _allow(ruleset, Path("/proc/self/task"), (_FS_WRITE_FILE | _FS_TRUNCATE) & handled)
    if _libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise _last_error("landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int, *, needed: bool = False) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        if needed:
            raise
        return  # what is not there, or not ours to see, needs no rule
    try:
        if not path.is_dir():
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0):
            raise _last_error(f"landlock_add_rule {path}")
    finally:
        # A rule is tied to an inode. Those of /proc are made anew when memory was short and nobody held them, and
        # the rule is lost with them: such a descriptor stays open for as long as the process lives.
        if not path.is_relative_to("/proc"):
            os.close(fd)


def _readable(*, gpu: bool) -> Iterable[Path]:
    """The interpreter, the installed packages and the system's libraries; no configuration, nobody's data."""
    import pared
    import worker

    yield from (
        Path(entry) for entry in {sys.prefix, sys.base_prefix, *site.getsitepackages(), site.USER_SITE} if entry
    )
    # The packages themselves, not the folder they lie in: in a checkout that also holds the data.
    yield from (Path(entry) for package in (pared, worker) for entry in package.__path__)
    yield from (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"), Path("/lib"), Path("/lib64"))
    yield from (Path("/etc/ld.so.cache"), Path("/proc/self"), Path("/proc/cpuinfo"), Path("/proc/meminfo"))
    yield from (Path("/sys/devices/system/cpu"), Path("/sys/devices/system/node"))
    yield from (Path("/dev/urandom"), Path("/dev/random"))
    if gpu:
        yield from (
            Path("/proc/driver/nvidia"),
            Path("/sys/module/nvidia"),
            Path("/sys/bus/pci"),
            Path("/usr/local/cuda"),
        )
        yield from (Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry)


def gpu_devices(card: int | None = None, folder: Path = Path("/dev")) -> list[Path]:
    """The device files of this machine's GPUs, or of this one alone with those that all of them share."""
    found = sorted(folder.glob("nvidia*"))
    others = {path for path in found if path.name.removeprefix("nvidia").isdecimal() and path.name != f"nvidia{card}"}
    return found if card is None else [path for path in found if path not in others]


# -- seccomp ------------------------------------------------------------------------------------

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_CLONE_THREAD = 0x00010000
_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_PR_SET_MM, _PR_SET_PTRACER = 35, 0x59616D61
_AF_UNIX, _NOT_A_STREAM = 1, 0b10

# (x86-64, aarch64) numbers of calls that no compression job makes; None where an architecture lacks one.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # sockets
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # memory and messages that processes of one user share
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_secret": (447, 447),
    # identity
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91), "personality": (135, 92), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    # what Landlock does not guard: links to, and attributes of, files that are not the job's
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33), "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # the kernel's own machinery
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "syslog": (103, 116), "vhangup": (153, 58), "uselib": (134, None),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
}  # fmt: skip
# CUDA binds an abstract unix socket, listens, and does not start where it may not. Nobody is served: without accept
# nothing flows from who connects, without connect, socketpair and the calls that send nothing flows out, and no name in
# the file system is taken, for Landlock allows making a socket nowhere.
_CUDA_STARTS_WITH = {"socket", "bind", "listen"}
_CLONE, _CLONE3, _PRCTL, _IOCTL, _FCNTL = (56, 220), (435, 435), (157, 167), (16, 29), (72, 25)
# Memory that stays in use while it is mapped nowhere, where the watch over resident memory cannot see it.
_MEMFD_CREATE, _MMAP = (319, 279), (9, 222)
# The first argument is a process: only this one may be named.
_ON_ITSELF = {
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
_ON_ITSELF_OR_ZERO = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}


def number_of(call: str) -> int:
    """The number of one of the denied calls on this processor; -1: it has none."""
    number = _DENIED[call][0 if platform.machine() == "x86_64" else 1]
    return -1 if number is None else number


def seccomp_works() -> bool:
    """Whether there is a filter for this processor at all."""
    return sys.platform == "linux" and platform.machine() in _AUDIT_ARCH and sys.maxsize > 2**32


def _seccomp(*, gpu: bool) -> None:
    if not seccomp_works():
        raise OSError(errno.EOPNOTSUPP, f"no seccomp filter for {platform.machine()}")
    program = b"".join(_filter(platform.machine(), os.getpid(), gpu=gpu))
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    reference = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    call = 317 if platform.machine() == "x86_64" else 277
    if _libc.syscall(call, 1, 1, ctypes.byref(reference)):  # set the filter, on every thread
        raise _last_error("seccomp")


def _filter(machine: str, pid: int, *, gpu: bool) -> list[bytes]:
    """A BPF program over `struct seccomp_data`: number at 0, architecture at 4, arguments from 16, eight bytes each."""
    column = 0 if machine == "x86_64" else 1
    program = [
        _load(4),
        _jump(_JUMP_IF_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _return(_KILL),
        _load(0),
    ]
    if machine == "x86_64":  # the x32 numbers would go round the list
        program += [_jump(_JUMP_IF_AT_LEAST, 0x40000000, 0, 1), _return(_ERRNO | errno.ENOSYS)]

    def case(numbers: tuple[int | None, int | None], block: list[bytes]) -> None:
        number = numbers[column]
        if number is not None:
            # Past the block otherwise; the accumulator then still holds the number.
            program.extend([_jump(_JUMP_IF_EQUAL, number, 0, len(block)), *block])

    no = _return(_ERRNO | errno.EPERM)
    yes = _return(_ALLOW)
    for name, numbers in _DENIED.items():
        if not (gpu and name in _CUDA_STARTS_WITH):
            case(numbers, [no])
    # Threads are allowed, processes are not; clone3 hides its flags in memory, so libc must fall back to clone.
    case(_CLONE, [_load(16), _jump(_JUMP_IF_SET, _CLONE_THREAD, 0, 1), yes, no])
    case(_CLONE3, [_return(_ERRNO | errno.ENOSYS)])
    if gpu:
        # The family and the type are ints: the kernel, too, looks at 32 bits of each register alone. Of the types of a
        # unix socket, those for single messages have this bit; they would hear from outside without being connected.
        kind = [_load(24), _jump(_JUMP_IF_SET, _NOT_A_STREAM, 1, 0)]
        case(_DENIED["socket"], [_load(16), _jump(_JUMP_IF_EQUAL, _AF_UNIX, 0, len(kind) + 1), *kind, yes, no])
    else:  # pinned memory needs both
        case(_MEMFD_CREATE, [no])
        both = [_jump(_JUMP_IF_SET, _MAP_ANONYMOUS, 0, 1), _jump(_JUMP_IF_SET, _MAP_SHARED, 1, 0)]
        case(_MMAP, [_load(16 + 8 * 3), *both, yes, no])
    for numbers in _ON_ITSELF.values():
        case(numbers, [_load(16), _jump(_JUMP_IF_EQUAL, pid, 0, 1), yes, no])
    for numbers in _ON_ITSELF_OR_ZERO.values():
        case(numbers, [_load(16), _jump(_JUMP_IF_EQUAL, pid, 1, 0), _jump(_JUMP_IF_EQUAL, 0, 0, 1), yes, no])
    for numbers, argument, values in (
        (_PRCTL, 0, (_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_MM, _PR_SET_PTRACER)),
        (_IOCTL, 1, (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP)),
        (_FCNTL, 1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX)),  # a file signals its owner, whichever process that is
    ):
        tests = [_jump(_JUMP_IF_EQUAL, value, len(values) - index, 0) for index, value in enumerate(values)]
        case(numbers, [_load(16 + 8 * argument), *tests, yes, no])
    program.append(yes)
    return program


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", kind, if_true, if_false, value)


def _return(verdict: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, verdict)
