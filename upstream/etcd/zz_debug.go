package etcd
import ("io";"fmt";"time")
var dbg *follower
func Debug(u *Upstream, w io.Writer) {
 f := dbg
 fmt.Fprintln(w, "DEBUG head", f.poll.head.Load(), "expected", f.expected.Load(), "waiting", time.Since(time.Unix(0,f.waiting.Load())), "tiles", len(f.tiling.tiles), "limit", f.tiling.limit, "frontier", f.tiling.frontier, "thead", f.tiling.head, "held", f.tiling.held(), "next", f.tiling.next())
 for _, t := range f.tiling.tiles { fmt.Fprintf(w, "DEBUG tile %d [%d,%d) last %d done %v whole %d of %d lenient %v bytes %d\n", t.id,t.start,t.end,t.last,t.done,t.whole,len(t.events),t.lenient,t.bytes) }
}
