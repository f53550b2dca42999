package readapi_test

import (
	"context"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// watchOn opens a bare watch stream, which reads only when the test does.
func watchOn(tb testing.TB, ctx context.Context, srv *server) pb.Watch_WatchClient {
	tb.Helper()
	w, err := pb.NewWatchClient(srv.conn(tb)).Watch(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

func send(tb testing.TB, w pb.Watch_WatchClient, r *pb.WatchCreateRequest) {
	tb.Helper()
	err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
	if err != nil {
		tb.Fatal(err)
	}
}

func sendCancel(tb testing.TB, w pb.Watch_WatchClient, id int64) {
	tb.Helper()
	err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	if err != nil {
		tb.Fatal(err)
	}
}

func sendProgress(tb testing.TB, w pb.Watch_WatchClient) {
	tb.Helper()
	err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	if err != nil {
		tb.Fatal(err)
	}
}

func recv(tb testing.TB, w pb.Watch_WatchClient) *pb.WatchResponse {
	tb.Helper()
	r, err := w.Recv()
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// open creates a watch and returns the response that says so.
func open(tb testing.TB, w pb.Watch_WatchClient, r *pb.WatchCreateRequest) *pb.WatchResponse {
	tb.Helper()
	send(tb, w, r)
	resp := recv(tb, w)
	if !resp.Created {
		tb.Fatalf("not a created response: %v", resp)
	}
	return resp
}

// events receives until n events have come.
func events(tb testing.TB, w pb.Watch_WatchClient, n int) []*mvccpb.Event {
	tb.Helper()
	var got []*mvccpb.Event
	for len(got) < n {
		got = append(got, recv(tb, w).Events...)
	}
	return got
}
