package etcd

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// endedStream is a stream that has ended while a response was still unread.
type endedStream struct {
	grpc.ClientStream
	unread int
}

func (s *endedStream) Send(*pb.WatchRequest) error { return io.EOF }

func (s *endedStream) Recv() (*pb.WatchResponse, error) {
	if s.unread == 0 {
		return nil, status.Error(codes.Unavailable, "cut")
	}
	s.unread--
	return &pb.WatchResponse{}, nil
}

// Who sends on a stream that has ended waits for the receiver to say why, while
// the receiver waits to hand on a response: neither may wait for ever. The
// synctest bubble fails if they do.
func TestEndOfStreamIsNotLostBehindAResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &follower{u: &Upstream{}, stream: &endedStream{unread: 3}, responses: make(chan *pb.WatchResponse)}
		group, ctx := errgroup.WithContext(context.Background())
		group.Go(func() error { return f.receive(ctx) })
		group.Go(func() error {
			synctest.Wait() // the receiver holds a response
			return f.send(ctx, request{id: 1})
		})
		if err := group.Wait(); status.Code(err) != codes.Unavailable {
			t.Errorf("ended with %v: want the reason of the receiver", err)
		}
	})
}
