"""The CPU engine's units, one after another in plain loops: what `tivtok_kernels.cpu.plan` does on whole arrays."""

from collections import Counter
from itertools import groupby, pairwise

from tivtok_kernels import RangeLayout, SifLayout
from tivtok_kernels.cpu.plan import SLOT_ROWS


class Loops:
    """Tables as lists of tuples, and the rows of the workspaces, as in `plan.Plan`."""

    def __init__(self, layout: SifLayout | RangeLayout, scope: str, most_rows: int, pairs_per_unit: int) -> None:
        self.units, self.frames = [], []
        self.merges = {"q": [], "k": [], "frame": []}
        self.slots = {"q": 0, "k": 0, "frame": 0}
        self.most_rows, self.pairs_per_unit = most_rows, pairs_per_unit
        if isinstance(layout, RangeLayout):
            for _, runs in groupby(layout.segments, key=lambda run: (run.a_start, run.a_len)):
                self.add_runs([tuple(run) for run in runs])
        else:
            row = tiv_row = 0
            for num_tiv, frames in zip(layout.num_tiv, layout.frame_tokens, strict=True):
                if scope != "broadcast":
                    tiv_row = row
                    row += num_tiv
                self.add_clip(num_tiv, frames, row, tiv_row, scope)
                row, tiv_row = row + sum(frames), tiv_row + num_tiv
        self.units.sort(key=self.pairs, reverse=True)

    def add_clip(self, num_tiv, lengths, row, tiv_row, scope):
        first_frame = len(self.frames)
        for tokens in lengths:
            if tokens:
                self.frames.append((row, tokens, row, tokens))
            row += tokens
        frames = self.frames[first_frame:]
        spans = self.spans([n for _, n, *_ in frames], [n * (2 * num_tiv + n) for _, n, *_ in frames])
        if not spans and num_tiv:
            spans = [(0, 0, 0, 0)]
        pieces = Counter(frame for frame, *_ in spans)
        shared = len(spans) if scope == "clip" and num_tiv else 1
        q_slots = self.take("q", tiv_row, num_tiv, -(-num_tiv // SLOT_ROWS) * SLOT_ROWS, shared)
        k_slots = self.take("k", tiv_row, num_tiv, num_tiv, len(spans)) if num_tiv else [-1] * len(spans)
        for i, (frame, count, first, end) in enumerate(spans):
            frame_slot = -1
            if count == 1 and end - first < (tokens := frames[frame][1]):
                if first == 0:
                    frame_slots = iter(self.take("frame", frames[frame][0], tokens, tokens, pieces[frame]))
                frame_slot = next(frame_slots)
            here = i < shared and scope != "broadcast"
            seen = [num_tiv * i // shared * here, num_tiv * (i + 1) // shared * here, scope == "clip" and num_tiv > 0]
            slots = [q_slots[i] if here else -1, k_slots[i], frame_slot]
            self.units.append((tiv_row, tiv_row, num_tiv, first_frame + frame, count, first, end, *seen, *slots))

    def add_runs(self, runs):
        if len(runs) == 1 and runs[0][3] > runs[0][5]:
            row, rows, a, a_len, b, b_len = runs[0]
            runs = [(row, rows, b, b_len, a, a_len)]
        first_frame, (_, _, key, num_keys, *_) = len(self.frames), runs[0]
        self.frames += [(row, rows, b, b_len) for row, rows, _, _, b, b_len in runs]
        for frame, *span in self.spans([n for _, n, *_ in runs], [n * (num_keys + b) for _, n, *_, b in runs]):
            self.units.append((0, key, num_keys, first_frame + frame, *span, 0, 0, 0, -1, -1, -1))

    def take(self, kind, row, length, slot_rows, count):
        if count < 2:
            return [-1] * count
        first = self.slots[kind]
        self.merges[kind].append((row, length, first, count))
        self.slots[kind] += slot_rows * count
        return [first + slot_rows * i for i in range(count)]

    def spans(self, tokens, pairs_of):
        spans, first, pairs = [], 0, 0
        for i, n in enumerate(tokens):
            pieces = -(-n // self.most_rows)
            if pieces > 1:
                spans += [self.whole(first, i, tokens)] if first < i else []
                cuts = [n * piece // pieces for piece in range(pieces + 1)]
                spans += [(i, 1, start, end) for start, end in pairwise(cuts)]
                first, pairs = i + 1, 0
                continue
            pairs += pairs_of[i]
            if pairs >= self.pairs_per_unit:
                spans.append(self.whole(first, i + 1, tokens))
                first, pairs = i + 1, 0
        return spans + ([self.whole(first, len(tokens), tokens)] if first < len(tokens) else [])

    def whole(self, first, end, tokens):
        return (first, end - first, 0, tokens[first] if end - first == 1 else 0)

    def pairs(self, unit):
        num_tiv, frame, frames, row, row_end, first, end, sees_rows = unit[2:10]
        tokens = [(n, keys) for _, n, _, keys in self.frames[frame : frame + frames]]
        if frames == 1:
            tokens = [(row_end - row, tokens[0][1])]
        own = sum(n * (num_tiv + keys) for n, keys in tokens)
        return own + num_tiv * (end - first + sum(n for n, _ in tokens) * sees_rows)
