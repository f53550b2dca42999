package promote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"github.com/heliograph/heliograph/internal/zaplog"
)

// EtcdVersion returns the version of the etcd that [Start] runs, such as 3.7.3.
func EtcdVersion() string { return version.Version }

// minQuota is the least that a promoted etcd may grow to. What the source's quota
// was is not known, and etcd's own default of 2 GiB would make it refuse writes at
// once if the source had been given more.
const minQuota = 8 << 30

// What a client may ask for at once. What the source's limits were is not known, and
// etcd's defaults (1.5 MiB, 128 operations) would refuse what a source with higher
// ones took. A record of 32 MiB is the largest that nodes pass on; what is around it
// there is more than around a request.
const (
	maxRequestBytes = 32<<20 - 1<<10
	maxTxnOps       = 1 << 16
)

// memberUpdateTimeout is for one change of the membership: the cluster has just
// taken a write.
const memberUpdateTimeout = 5 * time.Second

// ServeConfig says how to run the etcd of a promoted node. DataDir, Name,
// ClientURLs and PeerURLs are required; every other field works at its zero value.
type ServeConfig struct {
	DataDir string // what EtcdDir returns
	Name    string // Record.Name

	ClientURLs    []string // where it listens for clients: http(s)://host:port
	AdvertiseURLs []string // where clients reach it; nil means ClientURLs
	PeerURLs      []string // where it listens for members: Record.PeerURLs, or others
	AdvertisePeer string   // where members reach it, from now on; empty: where they have so far
	ClientTLS     transport.TLSInfo
	PeerTLS       transport.TLSInfo
	QuotaBytes    int64         // how big the database may get; zero means 8 GiB, or twice its size if that is more
	KeepHistory   time.Duration // what it keeps when it compacts by itself; zero means that it does not
	StartTimeout  time.Duration // until it leads and answers; zero means 2 minutes

	Log *slog.Logger // nil discards
}

// Start starts etcd on a data directory that exists, and returns when it leads
// and accepts writes. The caller closes it. A failed fsync ends the process, as it
// ends etcd.
func Start(ctx context.Context, cfg ServeConfig) (*embed.Etcd, error) {
	ec, err := cfg.embed()
	if err != nil {
		return nil, fmt.Errorf("promoted etcd: %w", err)
	}
	timeout := cfg.StartTimeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it was not ready within %v", timeout))
	defer cancel()
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("promoted etcd: %w", err)
	}
	select {
	case <-e.Server.ReadyNotify():
		cfg.advertisePeer(ctx, e.Server)
		return e, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("it stopped by itself")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	e.Close()
	return nil, fmt.Errorf("promoted etcd: %w", err)
}

// advertisePeer changes where the membership says that this member is reached, if
// it says something else. If that fails, the etcd serves all the same.
func (c ServeConfig) advertisePeer(ctx context.Context, s *etcdserver.EtcdServer) {
	self := s.Cluster().Member(s.MemberID())
	if c.AdvertisePeer == "" || self == nil || slices.Contains(self.PeerURLs, c.AdvertisePeer) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, memberUpdateTimeout)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	if c.Log != nil {
		log = c.Log
	}
	now := membership.Member{ID: self.ID, RaftAttributes: membership.RaftAttributes{PeerURLs: []string{c.AdvertisePeer}}}
	if _, err := s.UpdateMember(s.AuthStore().WithRoot(ctx), now); err != nil {
		log.Error("members still look for this one elsewhere: change that with etcdctl member update", "was", self.PeerURLs, "now", c.AdvertisePeer, "err", err)
		return
	}
	log.Info("members are told where this one is now", "was", self.PeerURLs, "now", c.AdvertisePeer)
}

// Serve runs etcd as [Start] does until ctx ends, and returns nil when it has
// stopped. It calls ready, if that is not nil, once writes are accepted.
func Serve(ctx context.Context, cfg ServeConfig, ready func(*embed.Etcd)) error {
	stopping := new(atomic.Bool)
	if cfg.Log != nil {
		cfg.Log = slog.New(&stopHandler{cfg.Log.Handler(), stopping})
	}
	e, err := Start(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() {
		stopping.Store(true)
		e.Close()
	}()
	if ready != nil {
		ready(e)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("promoted etcd: %w", err)
	case <-e.Server.StopNotify():
		return errors.New("promoted etcd: it stopped by itself; was the member removed from its cluster?")
	}
}

func (c ServeConfig) embed() (*embed.Config, error) {
	if err := checkDataDir(c.DataDir); err != nil {
		return nil, err
	}
	if c.Name == "" {
		return nil, errors.New("ServeConfig.Name is empty")
	}
	if c.QuotaBytes < 0 || c.KeepHistory < 0 || c.StartTimeout < 0 {
		return nil, fmt.Errorf("ServeConfig: QuotaBytes %d, KeepHistory %v or StartTimeout %v is negative", c.QuotaBytes, c.KeepHistory, c.StartTimeout)
	}
	advertise := c.AdvertiseURLs
	if advertise == nil {
		advertise = c.ClientURLs
	}
	ec := embed.NewConfig()
	var errs [3]error
	ec.ListenClientUrls, errs[0] = parseURLs("ServeConfig.ClientURLs", c.ClientURLs)
	ec.AdvertiseClientUrls, errs[1] = parseURLs("ServeConfig.AdvertiseURLs", advertise)
	ec.ListenPeerUrls, errs[2] = parseURLs("ServeConfig.PeerURLs", c.PeerURLs)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	info, err := os.Stat(dbFile(c.DataDir))
	if err != nil {
		return nil, err
	}
	ec.QuotaBackendBytes = c.QuotaBytes
	if c.QuotaBytes == 0 {
		ec.QuotaBackendBytes = max(minQuota, 2*info.Size())
	}
	ec.MaxRequestBytes, ec.MaxTxnOps = maxRequestBytes, maxTxnOps
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, c.KeepHistory.String()
	ec.Dir, ec.Name = c.DataDir, c.Name
	ec.ClientTLSInfo, ec.PeerTLSInfo = c.ClientTLS, c.PeerTLS
	// The log in DataDir says who the members are. etcd checks these all the same.
	ec.AdvertisePeerUrls = ec.ListenPeerUrls
	ec.InitialCluster = ec.InitialClusterFromName(c.Name)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zaplog.New(c.Log))
	return ec, nil
}
