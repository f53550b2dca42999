package promote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/heliograph/heliograph/internal/zaplog"
)

// EtcdVersion returns the version of the etcd that [Start] runs, such as 3.7.3.
func EtcdVersion() string { return version.Version }

// minQuota is the least that a promoted etcd may grow to. What the source's quota
// was is not known, and etcd's own default of 2 GiB would make it refuse writes at
// once if the source had been given more.
const minQuota = 8 << 30

// ServeConfig says how to run the etcd of a promoted node. DataDir, Name,
// ClientURLs and PeerURLs are required; every other field works at its zero value.
type ServeConfig struct {
	DataDir string // what EtcdDir returns
	Name    string // Record.Name

	ClientURLs    []string // where it listens for clients: http(s)://host:port
	AdvertiseURLs []string // where clients reach it; nil means ClientURLs
	PeerURLs      []string // where it listens for members: Record.PeerURLs, or others
	ClientTLS     transport.TLSInfo
	PeerTLS       transport.TLSInfo
	QuotaBytes    int64         // how big the database may get; zero means 8 GiB, or twice its size if that is more
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
	if c.QuotaBytes < 0 || c.StartTimeout < 0 {
		return nil, fmt.Errorf("ServeConfig: QuotaBytes %d or StartTimeout %v is negative", c.QuotaBytes, c.StartTimeout)
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
	ec.Dir, ec.Name = c.DataDir, c.Name
	ec.ClientTLSInfo, ec.PeerTLSInfo = c.ClientTLS, c.PeerTLS
	// The log in DataDir says who the members are. etcd checks these all the same.
	ec.AdvertisePeerUrls = ec.ListenPeerUrls
	ec.InitialCluster = ec.InitialClusterFromName(c.Name)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zaplog.New(c.Log))
	return ec, nil
}
