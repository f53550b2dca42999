package readapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// authServer answers etcdserverpb.Auth. Users and roles live at the source:
// neither changes nor look-ups are served. Whoever may read at all, may read
// everything ([Config.Admit]).
type authServer struct {
	pb.UnsafeAuthServer
	*Server
}

// AuthStatus implements [pb.AuthServer] with the source's access control.
func (s *authServer) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	enabled, revision := s.cfg.AuthStatus()
	return &pb.AuthStatusResponse{Header: s.header(0), Enabled: enabled, AuthRevision: revision}, nil
}

// Authenticate implements [pb.AuthServer]. Clients take this error to mean
// that they may go on without a token; whether they may is Config.Admit's
// decision, on every call.
func (s *authServer) Authenticate(context.Context, *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return nil, rpctypes.ErrGRPCAuthNotEnabled
}

// AuthEnable implements [pb.AuthServer]; it is refused, like all that follow.
func (s *authServer) AuthEnable(context.Context, *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return nil, s.readOnly("AuthEnable")
}

// AuthDisable implements [pb.AuthServer].
func (s *authServer) AuthDisable(context.Context, *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return nil, s.readOnly("AuthDisable")
}

// UserAdd implements [pb.AuthServer].
func (s *authServer) UserAdd(context.Context, *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	return nil, s.readOnly("UserAdd")
}

// UserGet implements [pb.AuthServer].
func (s *authServer) UserGet(context.Context, *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return nil, s.readOnly("UserGet")
}

// UserList implements [pb.AuthServer].
func (s *authServer) UserList(context.Context, *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return nil, s.readOnly("UserList")
}

// UserDelete implements [pb.AuthServer].
func (s *authServer) UserDelete(context.Context, *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return nil, s.readOnly("UserDelete")
}

// UserChangePassword implements [pb.AuthServer].
func (s *authServer) UserChangePassword(context.Context, *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	return nil, s.readOnly("UserChangePassword")
}

// UserGrantRole implements [pb.AuthServer].
func (s *authServer) UserGrantRole(context.Context, *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return nil, s.readOnly("UserGrantRole")
}

// UserRevokeRole implements [pb.AuthServer].
func (s *authServer) UserRevokeRole(context.Context, *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return nil, s.readOnly("UserRevokeRole")
}

// RoleAdd implements [pb.AuthServer].
func (s *authServer) RoleAdd(context.Context, *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return nil, s.readOnly("RoleAdd")
}

// RoleGet implements [pb.AuthServer].
func (s *authServer) RoleGet(context.Context, *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return nil, s.readOnly("RoleGet")
}

// RoleList implements [pb.AuthServer].
func (s *authServer) RoleList(context.Context, *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return nil, s.readOnly("RoleList")
}

// RoleDelete implements [pb.AuthServer].
func (s *authServer) RoleDelete(context.Context, *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return nil, s.readOnly("RoleDelete")
}

// RoleGrantPermission implements [pb.AuthServer].
func (s *authServer) RoleGrantPermission(context.Context, *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return nil, s.readOnly("RoleGrantPermission")
}

// RoleRevokePermission implements [pb.AuthServer].
func (s *authServer) RoleRevokePermission(context.Context, *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return nil, s.readOnly("RoleRevokePermission")
}
