// Everything that differs between the Nix releases we compile with, 2.24 to 2.36, found by asking the compiler
// (__has_include, requires) rather than by version numbers: distributions patch, and no public header of Nix
// tells its version. Include this before any other header of Nix; store.cc, questions.hh and tables.hh include no other.
#pragma once

#if __has_include(<nix/store/store-api.hh>)
// 2.28 and newer: headers in directories, each bringing the configuration that it needs.
#  include <nix/store/content-address.hh>
#  include <nix/store/globals.hh>
#  include <nix/store/indirect-root-store.hh>
#  include <nix/store/local-fs-store.hh>
#  include <nix/store/local-store.hh>
#  include <nix/store/path-info.hh>
#  include <nix/store/remote-store-connection.hh>
#  include <nix/store/store-api.hh>
#  if __has_include(<nix/store/store-open.hh>)
#    include <nix/store/store-open.hh> // 2.29: openStore() moved
#  endif
#  include <nix/util/config-global.hh>
#  include <nix/util/logging.hh>
#  include <nix/util/terminal.hh>
#  if __has_include(<nix/util/linux-namespaces.hh>)
#    include <nix/util/linux-namespaces.hh>
#  endif
#else
// 2.24 to 2.27: one flat directory, and the results of Nix's own configuration must come first, because the
// layout of its settings depends on them.
#  if __has_include(<config-store.hh>)
#    include <config-util.hh>
#    include <config-store.hh>
#  elif __has_include(<nix/config.h>)
#    include <nix/config.h>
#  else
#    include <config.h>
#  endif
#  include <config-global.hh>
#  include <content-address.hh>
#  include <globals.hh>
#  include <indirect-root-store.hh>
#  include <local-fs-store.hh>
#  include <local-store.hh>
#  include <logging.hh>
#  include <path-info.hh>
#  include <remote-store-connection.hh>
#  include <store-api.hh>
#  include <terminal.hh>
#endif

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <type_traits>

// Stand-ins that lose overload resolution against Nix's own functions, where there are such. A namespace beside
// Nix's, not in ours: of two using-directives the names that land in a nearer scope hide the others.
namespace nix_store_fs_absent {
template<class... None>
void tryEnterPrivateMountNamespace(None...)
{
}
}

namespace nix_store_fs::compat {

// Paths are std::string up to 2.33 and std::filesystem::path from 2.34.
inline std::string str(std::string path)
{
    return path;
}
inline std::string str(const std::filesystem::path & path)
{
    return path.string();
}

// nix::logger is a plain pointer up to 2.26 and from 2.35, a std::unique_ptr in between.
template<class Slot>
void install_logger(Slot & slot, nix::Logger * logger)
{
    if constexpr (std::is_pointer_v<Slot>)
        slot = logger;
    else {
        // Nix's own logger is leaked on purpose: a static object may still hold a reference to it.
        (void) slot.release();
        slot.reset(logger);
    }
}

// Activities carry `const Logger::Fields &` up to 2.35 and `std::span<const Logger::Field>` from 2.36.
template<class Logger, class = void>
struct FieldsOf
{
    using type = std::span<const typename Logger::Field>;
};
template<class Logger>
struct FieldsOf<Logger, std::void_t<typename Logger::Fields>>
{
    using type = const typename Logger::Fields &;
};
using Fields = FieldsOf<nix::Logger>::type;

// Hash formats got another enumeration; SRI kept its place.
template<class Format>
std::string sri(const nix::Hash & hash, std::string (nix::Hash::*to_string)(Format, bool) const)
{
    constexpr auto sri = static_cast<Format>(3);
    return (hash.*to_string)(sri, true);
}

// Settings are read by their names in nix.conf: settings.storeUri, for one, is a text up to 2.33 and a
// StoreReference from 2.34.
inline std::string setting(const std::string & name)
{
    std::map<std::string, nix::GlobalConfig::SettingInfo> all;
    nix::globalConfig.getSettings(all);
    return all.at(name).value;
}

// Signatures are texts up to 2.33, a type of their own from 2.34.
template<class Signature>
std::string signature(const Signature & signature)
{
    if constexpr (std::is_convertible_v<const Signature &, std::string>)
        return signature;
    else
        return signature.to_string();
}

// The reverse of signature().
template<class Signatures>
void add_signature(Signatures & signatures, const std::string & text)
{
    using Signature = typename Signatures::value_type;
    // Not whether it can be made from a text: any aggregate that begins with one can.
    if constexpr (std::is_convertible_v<std::string, Signature>)
        signatures.insert(text);
    else
        signatures.insert(Signature::parse(text));
}

// Facts begin with a hash alone up to 2.32, with the store's directory as well from 2.33.
template<class Facts = nix::UnkeyedValidPathInfo>
nix::ValidPathInfo valid_path_info(const nix::Store & store, const nix::StorePath & path, const nix::Hash & hash)
{
    if constexpr (std::is_constructible_v<Facts, nix::Hash>)
        return nix::ValidPathInfo(path, Facts(hash));
    else
        return nix::ValidPathInfo(path, Facts(store.storeDir, hash));
}

// A database that exists is opened with a mode up to 2.33, with settings from 2.34.
template<class Database = nix::SQLite>
Database open_database(const std::string & path, bool immutable = false)
{
    const auto mode = immutable ? nix::SQLiteOpenMode::Immutable : nix::SQLiteOpenMode::NoCreate;
    if constexpr (requires { typename Database::Settings; })
        return Database(
            path,
            typename Database::Settings{
                .mode = mode,
                .useWAL = setting("use-sqlite-wal") == "true",
            });
    else
        return Database(path, mode);
}

// Whether a local store was opened with `read-only`, a setting of the store itself up to 2.28, of its configuration from 2.29.
template<class Local>
bool is_read_only(const Local & store)
{
    if constexpr (requires { store.config->readOnly; })
        return store.config->readOnly.get();
    else
        return store.readOnly.get();
}

// The parameters of a statement are bound by a call of it up to 2.34, by apply() from 2.35.
template<class Use, class Value>
void bind(Use & use, const Value & value, bool not_null = true)
{
    if constexpr (requires { use.apply(value, not_null); })
        use.apply(value, not_null);
    else
        use(value, not_null);
}

// From 2.35 Nix remounts a read-only store only after its own function entered a mount namespace, and throws
// otherwise, whatever namespace the thread is in. Earlier it remounts without asking.
inline void enter_private_mount_namespace()
{
    using namespace nix;
    using namespace nix_store_fs_absent;
    tryEnterPrivateMountNamespace();
}

} // namespace nix_store_fs::compat
