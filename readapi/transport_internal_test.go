package readapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// BenchmarkTransport measures small calls over one connection, 64 at once: with
// gRPC on the listener, as if there were no pages beside it; through the
// splitter; and through Go's HTTP server, as etcd does it over TLS.
//
//	go test ./readapi -run '^$' -bench Transport
func BenchmarkTransport(b *testing.B) {
	for _, secure := range []bool{false, true} {
		for _, via := range []string{"grpc", "splitter", "net-http"} {
			if via == "net-http" && !secure {
				continue // which etcd does not do
			}
			name := "tls=no/via=" + via
			if secure {
				name = "tls=yes/via=" + via
			}
			b.Run(name, func(b *testing.B) { benchTransport(b, secure, via) })
		}
	}
}

func benchTransport(b *testing.B, secure bool, via string) {
	cfg := Config{
		Replica: struct{ Replica }{}, MemberName: "n", Source: func() string { return "" },
		ReadIndex: func(context.Context) (int64, error) { return 0, nil },
	}
	creds := insecure.NewCredentials()
	if secure {
		cfg.TLS, creds = selfSigned(b)
	}
	s, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var work sync.WaitGroup
	defer work.Wait()
	switch via {
	case "grpc":
		opts := []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.WaitForHandlers(true)} // what a call costs anyway
		if secure {
			opts = append(opts, grpc.Creds(credentials.NewTLS(cfg.TLS)))
		}
		g := grpc.NewServer(opts...)
		healthpb.RegisterHealthServer(g, s.health)
		work.Go(func() { _ = g.Serve(lis) })
		defer g.Stop()
	case "splitter":
		g, doors := s.register(), newSplitter(lis, cfg.TLS)
		work.Go(doors.run)
		work.Go(func() { _ = g.Serve(doors.grpc) })
		defer g.Stop()
	case "net-http":
		g := s.register()
		conf := cfg.TLS.Clone()
		conf.NextProtos = []string{"h2"}
		web := &http.Server{Handler: g, TLSConfig: conf, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000}}
		work.Go(func() { _ = web.ServeTLS(lis, "", "") })
		defer web.Close()
	}
	conn, err := grpc.NewClient("passthrough:///"+lis.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := healthpb.NewHealthClient(conn)
	if _, err := client.Check(b.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := client.Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

func selfSigned(b *testing.B) (*tls.Config, credentials.TransportCredentials) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"node"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "node"})
}
