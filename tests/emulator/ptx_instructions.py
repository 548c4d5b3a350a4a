"""What PTX operands and instructions mean in C++ on the emulator, for ptx2cpp.py."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

CPP_TYPES = {
    "pred": "bool",
    "f32": "float",
    **{f"{kind}{bits}": f"{'int' if kind == 's' else 'uint'}{bits}_t" for kind in "sub" for bits in (8, 16, 32, 64)},
    "f16": "uint16_t",  # bits; only conversions look into them
    "bf16": "uint16_t",
}
SPECIAL = {
    **{
        f"%{ptx}.{axis}": f"emu::{name}().{axis}"
        for ptx, name in (("tid", "thread_idx"), ("ctaid", "block_idx"), ("ntid", "block_dim"), ("nctaid", "grid_dim"))
        for axis in "xyz"
    },
    "%laneid": "(emu::thread_idx().x & 31)",
    # Launched without clusters, every block is one of its own.
    "%cluster_ctarank": "0",
    **{f"%cluster_ctaid.{axis}": "0" for axis in "xyz"},
}
SHARED_SYMBOLS = ("dynamic_shared_bytes", "global_smem")  # of ours, of triton's kernels: all of shared memory


class UnsupportedPtx(ValueError):
    """PTX that this translator does not know."""


def split(operands: str) -> list[str]:
    """At the commas that are outside brackets."""
    parts, depth = [""], 0
    for c in operands:
        depth += (c in "{[") - (c in "}]")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts if p.strip()]


def elements(braced: str) -> list[str]:
    return [e.strip() for e in braced.strip()[1:-1].split(",")]


def in_braces(operand: str) -> str:
    """A vector of registers as it is, a single one as a vector."""
    return operand if operand.startswith("{") else f"{{{operand}}}"


def cpp_bool(value: object) -> str:
    return "true" if value else "false"


def identifier(register: str) -> str:
    return "v_" + re.sub(r"\W", "_", register)


@dataclass
class Kernel:
    """What the operands of one kernel mean."""

    params: list[str]
    registers: dict[str, str] = field(default_factory=dict)  # PTX name -> C++ type
    locals: set[str] = field(default_factory=set)

    def declare(self, ptx_type: str, names: str) -> str:
        """%r<4> is %r0 .. %r3; inline PTX declares plain names."""
        if ptx_type not in CPP_TYPES:
            raise UnsupportedPtx(f"register type {ptx_type}")
        if counted := re.fullmatch(r"(%\w+?)<(\d+)>", names.strip()):
            registers = [f"{counted[1]}{i}" for i in range(int(counted[2]))]
        else:
            registers = split(names)
        cpp = CPP_TYPES[ptx_type]
        self.registers.update(dict.fromkeys(registers, cpp))
        return f"{cpp} {', '.join(map(identifier, registers))};"

    def value(self, operand: str, ptx_type: str) -> str:
        """An operand as an expression of the instruction's type."""
        cpp = CPP_TYPES[ptx_type]
        if operand.startswith("!"):
            return f"!{self.value(operand[1:], ptx_type)}"
        if operand in SPECIAL:
            return f"({cpp}){SPECIAL[operand]}"
        if bits := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
            return f"ptx::bits<{cpp}>(0x{bits[1]}u)"
        if number := re.fullmatch(r"(-?(?:0x[0-9a-fA-F]+|\d+))U?", operand):
            return f"({cpp})({number[1]}ull)"
        if held := self.registers.get(operand):
            name = identifier(operand)
            if held == cpp:
                return name
            return f"ptx::bits<{cpp}>({name})" if "float" in (held, cpp) else f"({cpp}){name}"
        if operand in self.params:
            return f"(uint64_t)params[{self.params.index(operand)}]"
        if operand in self.locals:
            return f"(uint64_t){identifier(operand)}"
        place = re.fullmatch(r"([\w$]+)(?:\+(\d+))?", operand)
        if place and any(symbol in place[1] for symbol in SHARED_SYMBOLS):
            return f"({cpp})(ptx::kSharedBase + {place[2] or 0})"
        raise UnsupportedPtx(f"operand {operand!r}")

    def assign(self, register: str, ptx_type: str, expression: str) -> str:
        """The statement that puts an expression of the instruction's type into a register."""
        if register == "_":
            return f"(void)({expression});"
        held, cpp = self.registers[register], CPP_TYPES[ptx_type]
        if held != cpp and "float" in (held, cpp):
            expression = f"ptx::bits<{held}>(({cpp})({expression}))"
        return f"{identifier(register)} = ({held})({expression});"

    def address(self, operand: str, ptx_type: str = "u32") -> str:
        """[base+offset] as a number of the given type."""
        m = re.fullmatch(r"\[\s*([^+\]]+?)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not m:
            raise UnsupportedPtx(f"address {operand!r}")
        base, offset = m.groups()
        return f"({self.value(base, ptx_type)} + ({offset or 0}))"

    def pointer(self, operand: str, space: str) -> str:
        if space == "shared":
            return f"ptx::shared({self.address(operand)})"
        return f"(void*){self.address(operand, 'u64')}"

    def array(self, cpp_type: str, name: str, ptx_type: str, braced: str) -> str:
        return f"{cpp_type} {name}[] = {{{', '.join(self.value(e, ptx_type) for e in elements(braced))}}};"

    def scatter(self, braced: str, ptx_type: str, name: str) -> str:
        return " ".join(self.assign(e, ptx_type, f"{name}[{i}]") for i, e in enumerate(elements(braced)))


Handler = Callable[[Kernel, re.Match, list[str]], str]
HANDLERS: list[tuple[re.Pattern, Handler]] = []


def instruction(pattern: str) -> Callable[[Handler], Handler]:
    """Registers a handler for the opcodes that match completely; named groups reach it through the match."""

    def register(handler: Handler) -> Handler:
        HANDLERS.append((re.compile(pattern), handler))
        return handler

    return register


def expression(pattern: str, template: str, types: str = "", result: str = "{t}") -> None:
    """An instruction whose result is a C++ expression of its operands {0}, {1}, ... and its type {T}.

    pattern: its group t is the type of the operands; types: other ones for single operands, as "1=u32"; result: that
    of the result, if it differs.
    """
    special = dict(part.split("=") for part in types.split())

    @instruction(pattern)
    def handler(k: Kernel, m: re.Match, a: list[str]) -> str:
        t = m.groupdict().get("t") or "b32"
        values = [k.value(x, special.get(str(i), t)) for i, x in enumerate(a[1:])]
        return k.assign(a[0], result.format(t=t), template.format(*values, T=CPP_TYPES[t]))


ANY = r"(?P<t>\w+)"
INT = r"(?P<t>[su](?:16|32|64))"

expression(r"cvta(\.to)?(\.global|\.local|\.param)\." + ANY, "{0}")
expression(r"cvta\.shared\.(?P<t>u64)", "(uint64_t)ptx::shared({0})", "0=u32")
expression(r"cvta\.to\.shared\.(?P<t>u64)", "ptx::shared_address((void*){0})")
expression(r"add\." + INT, "ptx::wrap<{T}>({0}, {1}, '+')")
expression(r"sub\." + INT, "ptx::wrap<{T}>({0}, {1}, '-')")
expression(r"mul\.lo\." + INT, "ptx::wrap<{T}>({0}, {1}, '*')")
expression(r"mad\.lo\." + INT, "ptx::wrap<{T}>(ptx::wrap<{T}>({0}, {1}, '*'), {2}, '+')")
expression(r"mul\.hi\." + INT, "ptx::high_product({0}, {1})")
expression(r"div\." + INT, "{0} / {1}")
expression(r"rem\." + INT, "{0} % {1}")
expression(r"add(\.rn)?\.(?P<t>f32)", "{0} + {1}")
expression(r"sub(\.rn)?\.(?P<t>f32)", "{0} - {1}")
expression(r"mul(\.rn)?\.(?P<t>f32)", "{0} * {1}")
expression(r"div\.rn\.(?P<t>f32)", "{0} / {1}")
expression(r"div\.full\.(?P<t>f32)", "{0} / {1}")  # to 2 units in the last place
expression(r"rcp\.rn\.(?P<t>f32)", "1.0f / {0}")
expression(r"fma\.rn\.(?P<t>f32)", "__builtin_fmaf({0}, {1}, {2})")
expression(r"fma\.rn\.ftz\.(?P<t>f32)", "ptx::flushed_fma({0}, {1}, {2})")
expression(r"min\.(?P<t>f32)", "__builtin_fminf({0}, {1})")
expression(r"max\.(?P<t>f32)", "__builtin_fmaxf({0}, {1})")
expression(r"min\." + INT, "{0} < {1} ? {0} : {1}")
expression(r"max\." + INT, "{0} > {1} ? {0} : {1}")
expression(r"abs\.(?P<t>f32)", "__builtin_fabsf({0})")
expression(r"abs\.(?P<t>s32|s64)", "{0} < 0 ? -{0} : {0}")
expression(r"neg\.(?P<t>f32|s32|s64)", "-{0}")
expression(r"ex2\.approx\.ftz\.(?P<t>f32)", "dev::ex2({0})")
expression(r"lg2\.approx\.ftz\.(?P<t>f32)", "dev::lg2({0})")
expression(r"and\." + ANY, "{0} & {1}")
expression(r"or\." + ANY, "{0} | {1}")
expression(r"xor\." + ANY, "{0} ^ {1}")
expression(r"not\.(?P<t>pred)", "!{0}")
expression(r"not\.(?P<t>b16|b32|b64)", "~{0}")
expression(r"shl\." + ANY, "ptx::shift_left({0}, {1})", "1=u32")
expression(r"shr\." + ANY, "ptx::shift_right({0}, {1})", "1=u32")
expression(r"bfe\.(?P<t>[us](?:32|64))", "ptx::extract_bits({0}, {1}, {2})", "1=u32 2=u32")
expression(r"bfi\.(?P<t>b32|b64)", "ptx::insert_bits({0}, {1}, {2}, {3})", "2=u32 3=u32")
expression(r"add\.[su]16x2", "ptx::add_halves({0}, {1})")
expression(r"prmt\.(?P<t>b32)", "ptx::permute_bytes({0}, {1}, {2})")
expression(r"selp\." + ANY, "{2} ? {0} : {1}", "2=pred")
expression(r"cvt\.rn\.bf16x2\.f32", "dev::pack<dev::bf16>({1}, {0})", "0=f32 1=f32")
expression(r"cvt\.rn\.f16x2\.f32", "dev::pack<dev::fp16>({1}, {0})", "0=f32 1=f32")
expression(r"cvt\.f32\.(?P<t>bf16)", "emu::from_bf16({0})", result="f32")
expression(r"cvt\.f32\.(?P<t>f16)", "emu::from_fp16({0})", result="f32")
expression(r"cvt\.rn\.(?P<t>bf16)\.f32", "emu::to_bf16({0})", "0=f32")
expression(r"cvt\.rn\.(?P<t>f16)\.f32", "emu::to_fp16({0})", "0=f32")


@instruction(r"(mul|mad)\.wide\.(?P<t>[su](16|32))")
def multiply_wide(k: Kernel, m: re.Match, a: list[str]) -> str:
    wide = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}[m["t"]]
    x, y = (f"({CPP_TYPES[wide]}){k.value(factor, m['t'])}" for factor in a[1:3])
    return k.assign(a[0], wide, " + ".join([f"{x} * {y}", *(k.value(term, wide) for term in a[3:])]))


@instruction(r"mov\." + ANY)
def mov(k: Kernel, m: re.Match, a: list[str]) -> str:
    """Also packs two halves into a register, {low, high}, or unpacks them."""
    if not (a[0] + a[1]).count("{"):
        return k.assign(a[0], m["t"], k.value(a[1], m["t"]))
    half = {"b32": "b16", "b64": "b32"}[m["t"]]
    bits = half[1:]
    if a[0].startswith("{"):
        low, high = elements(a[0])
        whole = k.value(a[1], m["t"])
        return k.assign(low, half, whole) + " " + k.assign(high, half, f"{whole} >> {bits}")
    low, high = (f"({CPP_TYPES[m['t']]}){k.value(e, half)}" for e in elements(a[1]))
    return k.assign(a[0], m["t"], f"{low} | {high} << {bits}")


@instruction(r"setp\.(?P<compare>[a-z]+)(\.(?P<combine>and|or|xor))?\.(?P<t>\w+)")
def setp(k: Kernel, m: re.Match, a: list[str]) -> str:
    x, y = k.value(a[1], m["t"]), k.value(a[2], m["t"])
    operators = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    operators |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    opposite = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # true for NaN
    if m["compare"] in opposite:
        test = f"!({x} {opposite[m['compare']]} {y})"
    elif m["compare"] == "ne" and m["t"] == "f32":
        test = f"({x} < {y} || {x} > {y})"
    else:
        test = f"({x} {operators[m['compare']]} {y})"
    if m["combine"]:
        test += {"and": " && ", "or": " || ", "xor": " != "}[m["combine"]] + k.value(a[3], "pred")
    return k.assign(a[0], "pred", test)


@instruction(r"cvt(?P<mode>\.rn|\.rzi)?\.(?P<to>[suf]\d+)\.(?P<t>[suf]\d+)")
def cvt(k: Kernel, m: re.Match, a: list[str]) -> str:
    if (m["mode"] == ".rn") != (m["to"] == "f32") or (m["mode"] == ".rzi") != (m["t"] == "f32"):
        raise UnsupportedPtx(m[0])
    return k.assign(a[0], m["to"], f"({CPP_TYPES[m['to']]}){k.value(a[1], m['t'])}")


@instruction(r"ld\.param(\.v(?P<n>[24]))?\." + ANY)
def ld_param(k: Kernel, m: re.Match, a: list[str]) -> str:
    load = f"{CPP_TYPES[m['t']]} t[{m['n'] or 1}]; memcpy(t, {k.pointer(a[1], 'param')}, sizeof t);"
    return f"{{ {load} {k.scatter(in_braces(a[0]), m['t'], 't')} }}"


@instruction(r"createpolicy\.fractional\.L2::\w+\.b64")  # of caches, which are not modelled
def createpolicy(k: Kernel, m: re.Match, a: list[str]) -> str:
    return k.assign(a[0], "b64", "0")


@instruction(
    r"ld(\.volatile)?(\.(?P<space>shared|global|local)(?:::cta)?)?(\.nc)?(\.L[12]::\w+)*(\.v(?P<n>[24]))?\." + ANY
)
def ld(k: Kernel, m: re.Match, a: list[str]) -> str:
    load = f"ptx::load({k.pointer(a[1], m['space'] or 'generic')}, t);"
    return f"{{ {CPP_TYPES[m['t']]} t[{m['n'] or 1}]; {load} {k.scatter(in_braces(a[0]), m['t'], 't')} }}"


@instruction(r"st(\.volatile)?(\.(?P<space>shared|global|local)(?:::cta)?)?(\.v(?P<n>[24]))?\." + ANY)
def st(k: Kernel, m: re.Match, a: list[str]) -> str:
    values = k.array(CPP_TYPES[m["t"]], "t", m["t"], in_braces(a[1]))
    return f"{{ {values} ptx::store({k.pointer(a[0], m['space'] or 'generic')}, t); }}"


@instruction(r"bra(\.uni)?")
def bra(k: Kernel, m: re.Match, a: list[str]) -> str:
    return f"goto {identifier(a[0])};"


@instruction(r"ret|exit")
def ret(k: Kernel, m: re.Match, a: list[str]) -> str:
    return "return;"


# ------------------------------------------------------------------------------------- warps, barriers, tensor cores


@instruction(r"shfl\.sync\.(?P<mode>idx|bfly|up|down)\.b32")
def shfl(k: Kernel, m: re.Match, a: list[str]) -> str:
    value, lane, mask = k.value(a[1], "b32"), k.value(a[2], "s32"), k.value(a[4], "u32")
    return k.assign(a[0].split("|")[0], "b32", f"emu::shuffle({value}, emu::Shuffle::{m['mode']}, {lane}, {mask})")


@instruction(r"bar(?:rier)?\.(?P<what>sync|arrive)(?:\.aligned)?")
def bar(k: Kernel, m: re.Match, a: list[str]) -> str:
    if len(a) == 1:
        if m["what"] != "sync":
            raise UnsupportedPtx(f"{m[0]} {a}")
        return f"emu::whole_block_sync({k.value(a[0], 's32')});"
    return f"dev::bar_{m['what']}({k.value(a[0], 's32')}, {k.value(a[1], 's32')});"


@instruction(r"bar\.warp\.sync")
def bar_warp(k: Kernel, m: re.Match, a: list[str]) -> str:
    return f"__syncwarp({k.value(a[0], 'u32')});"


@instruction(r"elect\.sync")
def elect(k: Kernel, m: re.Match, a: list[str]) -> str:
    leader, elected = a[0].split("|")
    chosen = f"const uint32_t t = emu::elect({k.value(a[1], 'u32')});"
    is_it = k.assign(elected.strip(), "pred", "t == (emu::thread_idx().x & 31)")
    return f"{{ {chosen} {k.assign(leader.strip(), 'b32', 't')} {is_it} }}"


@instruction(r"ldmatrix\.sync\.aligned\.x(?P<n>[124])(?P<trans>\.trans)?\.m8n8\.shared\.b16")  # as CuTe writes it
@instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.shared\.b16")
def ldmatrix(k: Kernel, m: re.Match, a: list[str]) -> str:
    load = f"emu::matrix_load(t, {m['n']}, {cpp_bool(m['trans'])}, {k.address(a[1])});"
    return f"{{ uint32_t t[{m['n']}]; {load} {k.scatter(a[0], 'b32', 't')} }}"


@instruction(r"stmatrix\.sync\.aligned\.x(?P<n>[124])(?P<trans>\.trans)?\.m8n8\.shared\.b16")
@instruction(r"stmatrix\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.shared\.b16")
def stmatrix(k: Kernel, m: re.Match, a: list[str]) -> str:
    store = f"emu::matrix_store(t, {m['n']}, {cpp_bool(m['trans'])}, {k.address(a[0])});"
    return f"{{ {k.array('uint32_t', 't', 'b32', a[1])} {store} }}"


@instruction(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(?P<t>f16|bf16)\.(?P=t)\.f32")
def mma(k: Kernel, m: re.Match, a: list[str]) -> str:
    x, y = k.array("uint32_t", "x", "b32", a[1]), k.array("uint32_t", "y", "b32", a[2])
    call = f"emu::mma_m16n8k16(d, x, y, {cpp_bool(m['t'] == 'bf16')});"
    return f"{{ {k.array('float', 'd', 'f32', a[3])} {x} {y} {call} {k.scatter(a[0], 'f32', 'd')} }}"


@instruction(r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k16\.f32\.(?P<t>f16|bf16)\.(?P=t)")
def wgmma(k: Kernel, m: re.Match, a: list[str]) -> str:
    in_registers = a[1].startswith("{")
    if a[4:6] != ["1", "1"] or len(elements(a[0])) != int(m["n"]) // 2:
        raise UnsupportedPtx(f"{m[0]} {a[1:]}")
    majors = ["0", *a[6:]] if in_registers else a[6:]
    x = k.array("uint32_t", "x", "b32", a[1]) if in_registers else "uint32_t* x = nullptr;"
    desc_a = "0" if in_registers else k.value(a[1], "u64")
    flags = [k.value(a[3], "pred"), cpp_bool(m["t"] == "bf16"), *majors]
    call = f"emu::wgmma(d, {m['n']}, x, {desc_a}, {k.value(a[2], 'u64')}, {', '.join(flags)});"
    return f"{{ {k.array('float', 'd', 'f32', a[0])} {x} {call} {k.scatter(a[0], 'f32', 'd')} }}"


# ----------------------------------------------------------------------------------------------- asynchronous copies


@instruction(r"cp\.async\.(cg|ca)\.shared\.global")
def cp_async(k: Kernel, m: re.Match, a: list[str]) -> str:
    size = int(a[2], 0)
    if (m[1], size) not in {("cg", 16), ("ca", 4), ("ca", 8), ("ca", 16)}:
        raise UnsupportedPtx(f"{m[0]} of {a[2]} bytes")
    valid = f"ptx::is_whole({k.value(a[3], 'u32')}, {size})" if len(a) > 3 else "true"
    return f"emu::cp_async({k.address(a[0])}, {k.pointer(a[1], 'global')}, {size}, {valid});"


def tensor_operand(k: Kernel, operand: str, rank: str) -> tuple[str, str]:
    """[map, {c0, c1, ...}]: the map's pointer, and the coordinates as an array `c`."""
    pointer, coordinates = operand[1:-1].split(",", 1)
    if len(elements(coordinates)) != int(rank):
        raise UnsupportedPtx(operand)
    return f"(const CUtensorMap*){k.value(pointer.strip(), 'u64')}", k.array("int", "c", "s32", coordinates)


# A hint to caches, which are not modelled, is a last operand.
@instruction(
    r"cp\.async\.bulk\.tensor\.(?P<rank>[1-5])d\.shared::(?:cluster|cta)\.global(?:\.tile)?\.mbarrier::complete_tx::bytes"
    r"(?:\.L2::cache_hint)?"
)
def tma_load(k: Kernel, m: re.Match, a: list[str]) -> str:
    tensor_map, coordinates = tensor_operand(k, a[1], m["rank"])
    return f"{{ {coordinates} emu::tma_load({k.address(a[0])}, {tensor_map}, {k.address(a[2])}, {m['rank']}, c); }}"


@instruction(r"cp\.async\.bulk\.tensor\.(?P<rank>[1-5])d\.global\.shared::cta(?:\.tile)?\.bulk_group")
def tma_store(k: Kernel, m: re.Match, a: list[str]) -> str:
    tensor_map, coordinates = tensor_operand(k, a[0], m["rank"])
    return f"{{ {coordinates} emu::tma_store({tensor_map}, {k.address(a[1])}, {m['rank']}, c); }}"


# Those of emu::MapField.
MAP_FIELDS = {"global_address", "rank", "elemtype", "interleave_layout", "swizzle_mode", "fill_mode"}
MAP_FIELDS |= {"box_dim", "global_dim", "global_stride", "element_stride"}  # of a dimension


@instruction(r"tensormap\.replace\.tile\.(?P<field>\w+)\.shared::cta\.b1024\.(?P<t>b32|b64)")
def tensormap_replace(k: Kernel, m: re.Match, a: list[str]) -> str:
    if m["field"] not in MAP_FIELDS:
        raise UnsupportedPtx(m[0])
    dimension, value = a[1] if len(a) > 2 else "0", k.value(a[-1], m["t"])
    return f"emu::replace_in_map({k.address(a[0])}, emu::MapField::{m['field']}, {dimension}, {value});"


@instruction(
    r"tensormap\.cp_fenceproxy\.global\.shared::cta\.tensormap::generic\.release\.(?:cta|cluster|gpu|sys)\.sync\.aligned"
)
def publish_map(k: Kernel, m: re.Match, a: list[str]) -> str:
    if int(a[2], 0) != 128:
        raise UnsupportedPtx(f"{m[0]} {a}")
    return f"emu::publish_map({k.pointer(a[0], 'global')}, {k.address(a[1])});"


@instruction(r"fence\.proxy\.tensormap::generic\.acquire\.(?:cta|cluster|gpu|sys)")
def acquire_map(k: Kernel, m: re.Match, a: list[str]) -> str:
    if int(a[1], 0) != 128:
        raise UnsupportedPtx(f"{m[0]} {a}")
    return f"emu::acquire_map({k.pointer(a[0], 'global')});"


@instruction(r"mapa\.shared::cluster\.u32")
def mapa(k: Kernel, m: re.Match, a: list[str]) -> str:
    """Of other blocks an address outside shared memory: to use it is a finding."""
    return k.assign(a[0], "u32", f"{k.value(a[2], 'u32')} ? 0 : {k.value(a[1], 'u32')}")


@instruction(r"mbarrier\.arrive\.shared(?:::cta|::cluster)?\.b64")
def arrive(k: Kernel, m: re.Match, a: list[str]) -> str:
    if a[0] != "_":
        raise UnsupportedPtx(f"{m[0]} {a}")
    return f"emu::mbar_arrive({k.address(a[1])}, {k.value(a[2], 'u32') if len(a) > 2 else 1});"


@instruction(r"mbarrier\.try_wait\.parity\.shared(::cta)?\.b64")
def try_wait(k: Kernel, m: re.Match, a: list[str]) -> str:
    return k.assign(a[0], "pred", f"dev::mbar_try_wait({k.address(a[1])}, {k.value(a[2], 'u32')})")


def call(pattern: str, template: str) -> None:
    """An instruction that is one call: {0}, {1}, ... are its operands as u32, addresses in brackets included."""

    @instruction(pattern)
    def handler(k: Kernel, m: re.Match, a: list[str]) -> str:
        values = [k.address(x) if x.startswith("[") else "" if x == "_" else k.value(x, "u32") for x in a]
        return template.format(*values)


call(r"cp\.async\.commit_group", "dev::cp_async_commit();")
call(r"cp\.async\.wait_group", "emu::cp_async_wait({0});")
call(r"cp\.async\.bulk\.commit_group", "dev::tma_store_commit();")
call(r"cp\.async\.bulk\.wait_group", "emu::tma_store_wait({0}, false);")
call(r"cp\.async\.bulk\.wait_group\.read", "emu::tma_store_wait({0}, true);")
call(r"mbarrier\.init\.shared(::cta)?\.b64", "dev::mbar_init({0}, {1});")
call(r"mbarrier\.inval\.shared(::cta)?\.b64", "emu::mbar_invalidate({0});")
call(r"mbarrier\.arrive\.expect_tx\.shared(::cta)?\.b64", "dev::mbar_arrive_expect_tx({1}, {2});")
call(r"fence\.mbarrier_init\.release\.cluster", "dev::fence_mbar_init();")
call(r"fence\.proxy\.async(\.shared::cta)?", "dev::fence_proxy_async();")
call(r"wgmma\.fence\.sync\.aligned", "dev::wgmma_fence();")
call(r"wgmma\.commit_group\.sync\.aligned", "dev::wgmma_commit();")
call(r"wgmma\.wait_group\.sync\.aligned", "emu::wgmma_wait({0});")
call(r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32", "emu::set_max_registers({0});")


@instruction(r"prefetch\.tensormap")
def prefetch(k: Kernel, m: re.Match, a: list[str]) -> str:
    return ";"


def statement(k: Kernel, opcode: str, operands: list[str]) -> str:
    for pattern, handler in HANDLERS:
        if match := pattern.fullmatch(opcode):
            try:
                return handler(k, match, operands)
            except KeyError as unknown:  # a type, a comparison or a register
                raise UnsupportedPtx(f"{unknown} in {opcode} {', '.join(operands)}") from None
    raise UnsupportedPtx(f"{opcode} {', '.join(operands)}")
