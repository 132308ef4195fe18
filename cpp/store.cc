#include "nix-compat.hh"
#include "questions.hh"
#include "tables.hh"

#include "nix-store-fs/src/store/ffi.rs.h"

#include <ctime>
#include <deque>
#include <string_view>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace nix_store_fs {

namespace {

// ---- failures ----------------------------------------------------------------------------------------------

std::string plain(std::string_view text)
{
    return nix::filterANSIEscapes(text, true);
}

// Nix's what() has colours, an "error: " prefix and excerpts of sources; the parts it is made of have not.
std::string describe(const nix::ErrorInfo & info)
{
    auto text = plain(info.msg.str());
    for (auto & trace : info.traces)
        text.append(1, '\n').append(plain(trace.hint.str()));
    return text;
}

[[noreturn]] void rethrow()
{
    try {
        throw;
    } catch (const Failure &) {
        throw;
    } catch (const nix::BaseError & e) { // not nix::Error: an interruption is none
        throw Failure(Failure::Other, describe(e.info()));
    } catch (const std::exception & e) { // file system, memory, JSON, …
        throw Failure(Failure::Other, plain(e.what()));
    } catch (...) {
        throw Failure(Failure::Other, "Nix's store library failed without saying why");
    }
}

// The one way from Nix's exceptions to ours.
template<class Action>
auto guard(Action && action) -> decltype(action())
{
    try {
        return action();
    } catch (...) {
        rethrow();
    }
}

// ---- values ------------------------------------------------------------------------------------------------

rust::Vec<uint8_t> bytes(std::string_view text)
{
    rust::Vec<uint8_t> out;
    out.reserve(text.size());
    for (char c : text)
        out.push_back(static_cast<uint8_t>(c));
    return out;
}

std::string text(rust::Slice<const uint8_t> bytes)
{
    return std::string(bytes.begin(), bytes.end());
}

nix::StorePath store_path(std::string_view base_name)
{
    return nix::StorePath(base_name);
}

rust::String base_name(const nix::StorePath & path)
{
    auto name = path.to_string();
    return rust::String(name.data(), name.size());
}

Size size(const nix::StorePath & path, uint64_t nar_size)
{
    Size size;
    size.path = base_name(path);
    size.nar_size = nar_size;
    return size;
}

// ---- messages ----------------------------------------------------------------------------------------------

// Hands Nix's messages to Rust and drops everything meant for a terminal. All overrides are noexcept: Nix 2.36
// wants that, and a message must never end the operation that it tells of.
class Messages final : public nix::Logger
{
    void emit(nix::Verbosity level, std::string_view message) noexcept
    {
        if (level > nix::verbosity)
            return;
        try {
            auto line = plain(message);
            message_from_nix(
                static_cast<uint8_t>(level),
                rust::Slice<const uint8_t>(reinterpret_cast<const uint8_t *>(line.data()), line.size()));
        } catch (...) {
            // Out of memory while formatting: the message is lost, the operation continues.
        }
    }

public:
    using nix::Logger::log;
    using nix::Logger::logEI;

    void log(nix::Verbosity level, std::string_view message) noexcept override
    {
        emit(level, message);
    }

    void logEI(const nix::ErrorInfo & info) noexcept override
    {
        try {
            emit(info.level, describe(info));
        } catch (...) {
            // As above.
        }
    }

    void warn(const std::string & message) noexcept override
    {
        emit(nix::lvlWarn, message);
    }

    void writeToStdout(std::string_view) override {}

    // What Nix begins to do is a message like any other here.
    void startActivity(
        nix::ActivityId,
        nix::Verbosity level,
        nix::ActivityType,
        const std::string & message,
        compat::Fields,
        nix::ActivityId) noexcept override
    {
        if (!message.empty())
            emit(level, message);
    }
};

} // namespace

// ---- the process -------------------------------------------------------------------------------------------

rust::String nix_version()
{
    return rust::String::lossy(nix::nixVersion);
}

void initialise(uint8_t verbosity)
{
    guard([&] {
        // Before anything else: reading nix.conf and looking at $HOME may warn already.
        nix::verbosity = static_cast<nix::Verbosity>(verbosity);
        compat::install_logger(nix::logger, new Messages);

        // Not initNix(): that one installs signal handlers, starts a signal thread and sets the umask.
        nix::initLibStore();

        // We only ask. Without a build users' group, opening a local store neither hands its directory to that
        // group nor warns that there is no such group.
        nix::globalConfig.set("build-users-group", "");
        nix::globalConfig.set("substitute", "false");
        // What differs from nix.conf is sent to a daemon, which refuses most of it from most users and says so.
        nix::globalConfig.resetOverridden();
    });
}

rust::Vec<uint8_t> default_state_dir()
{
    return guard([] { return bytes(compat::str(nix::settings.nixStateDir)); });
}

rust::Vec<uint8_t> configured_store()
{
    return guard([] { return bytes(compat::setting("store")); });
}

void allow_private_remount()
{
    guard([] { compat::enter_private_mount_namespace(); });
}

// ---- a store -----------------------------------------------------------------------------------------------

struct Handle::Impl
{
    nix::ref<nix::Store> store;

    // Asked where a store has to have a directory on this machine.
    nix::LocalFSStore & local() const
    {
        if (auto local = dynamic_cast<nix::LocalFSStore *>(&*store))
            return *local;
        throw Failure(Failure::Unsupported, "its files lie in no directory of this machine");
    }

    // Asked where a store has to have a database that this process writes to.
    nix::LocalStore & database() const
    {
        if (auto local = dynamic_cast<nix::LocalStore *>(&*store))
            return *local;
        throw Failure(Failure::Unsupported, "it has no database that this process may write to");
    }

    // The facts of `given` but for its references.
    nix::ValidPathInfo valid(const Info & given) const
    {
        auto path = [](const rust::String & name) { return store_path({name.data(), name.size()}); };
        auto string = [](const rust::String & text) { return std::string(text.data(), text.size()); };
        auto hash = nix::Hash::parseSRI(string(given.nar_hash));
        // Nix asserts it.
        if (hash.algo != nix::HashAlgorithm::SHA256)
            throw Failure(Failure::Other, "the hash of '" + string(given.path) + "' is not SHA-256");
        auto info = compat::valid_path_info(*store, path(given.path), hash);
        info.narSize = given.nar_size;
        if (!given.deriver.empty())
            info.deriver = path(given.deriver);
        info.registrationTime = given.registration_time;
        for (auto & signature : given.signatures)
            compat::add_signature(info.sigs, string(signature));
        if (!given.ca.empty())
            info.ca = nix::ContentAddress::parse(string(given.ca));
        info.ultimate = given.ultimate;
        return info;
    }

    // `number` gives the place of a path in the answer.
    template<class Number>
    static Info info(const nix::StorePath & path, const nix::UnkeyedValidPathInfo & found, Number && number)
    {
        Info info;
        info.path = base_name(path);
        info.nar_hash = compat::sri(found.narHash, &nix::Hash::to_string);
        info.nar_size = found.narSize;
        info.references.reserve(found.references.size());
        for (auto & reference : found.references)
            info.references.push_back(number(reference));
        if (found.deriver)
            info.deriver = base_name(*found.deriver);
        info.registration_time = found.registrationTime;
        for (auto & signature : found.sigs)
            info.signatures.push_back(rust::String::lossy(compat::signature(signature)));
        if (found.ca)
            info.ca = rust::String::lossy(nix::renderContentAddress(found.ca));
        info.ultimate = found.ultimate;
        return info;
    }

    template<class Visit>
    void walk(rust::Slice<const rust::String> roots, Visit && visit) const;
};

Handle::Handle(std::unique_ptr<Impl> impl)
    : impl(std::move(impl))
{
}

Handle::~Handle() = default;

std::unique_ptr<Handle> open_store(rust::Str base, rust::Slice<const Param> params)
{
    return guard([&] {
        // Parameters go beside the address, not in it: then Nix cannot decode them otherwise than we did.
        nix::StoreConfig::Params decoded;
        for (auto & param : params)
            decoded.insert_or_assign(std::string(param.key), text({param.value.data(), param.value.size()}));
        // What Nix would remember of paths is old when others have added or collected some, and each is asked for once: keeping it
        // costs memory and time. Nix's own daemon sets the same.
        decoded.insert_or_assign("path-info-cache-size", "0");
        return std::make_unique<Handle>(
            std::make_unique<Handle::Impl>(Handle::Impl{nix::openStore(std::string(base), decoded)}));
    });
}

rust::Vec<uint8_t> Handle::logical_dir() const
{
    return guard([&] { return bytes(impl->store->storeDir); });
}

rust::Vec<uint8_t> Handle::physical_dir() const
{
    return guard([&] { return bytes(compat::str(impl->local().getRealStoreDir())); });
}

void Handle::connect() const
{
    guard([&] { impl->store->connect(); });
}

bool Handle::is_valid(rust::Str path) const
{
    return guard([&] { return impl->store->isValidPath(store_path({path.data(), path.size()})); });
}

// What Nix's computeFSClosure() does, with one question a path, but for two things: that one calls itself at each step of a chain, and
// a long one overflows the stack of a thread; and each path's facts had to be asked for a second time. `visit` gets each path once with
// what is known of it, and gives every reference to the function that it gets, which returns the place of a path in the order of the
// visits.
template<class Visit>
void Handle::Impl::walk(rust::Slice<const rust::String> roots, Visit && visit) const
{
    // Members stay where they are while it grows; their names are looked up by all of their characters (Nix's own hash of a
    // path is its first eight).
    std::deque<nix::StorePath> members;
    std::unordered_map<std::string_view, uint32_t> places;
    auto place = [&](const nix::StorePath & path) {
        if (auto known = places.find(path.to_string()); known != places.end())
            return known->second;
        auto next = static_cast<uint32_t>(members.size());
        members.push_back(path);
        places.emplace(members.back().to_string(), next);
        return next;
    };
    for (auto & root : roots)
        place(store_path({root.data(), root.size()}));
    ask(*store, members, [&](auto & path, auto & found) { visit(path, found, place); });
}

rust::Vec<Info> Handle::closure(rust::Slice<const rust::String> roots) const
{
    return guard([&] {
        rust::Vec<Info> out;
        impl->walk(roots, [&](auto & path, auto & found, auto & place) {
            out.push_back(Impl::info(path, found, place));
        });
        return out;
    });
}

rust::Vec<Size> Handle::sizes(rust::Slice<const rust::String> roots) const
{
    return guard([&] {
        rust::Vec<Size> out;
        impl->walk(roots, [&](auto & path, auto & found, auto & place) {
            for (auto & reference : found.references)
                place(reference);
            out.push_back(size(path, found.narSize));
        });
        return out;
    });
}

// The same by one statement. Of 'run' over 2,500 paths a third of the time and more was spent on the questions of the walk, each a
// transaction of its own.
rust::Vec<Size> Handle::sizes_at_once(rust::Slice<const rust::String> roots) const
{
    return guard([&] {
        auto & store = impl->database();
        // One that is derived from it has another store's paths as well.
        if (typeid(store) != typeid(nix::LocalStore))
            throw Failure(Failure::Unsupported, "its database does not have all of it");
        std::vector<nix::StorePath> paths;
        std::unordered_set<std::string> missing;
        for (auto & root : roots) {
            paths.push_back(store_path({root.data(), root.size()}));
            missing.emplace(paths.back().to_string());
        }
        rust::Vec<Size> out;
        read_sizes(store, paths, [&](const nix::StorePath & path, uint64_t nar_size) {
            if (!missing.empty())
                missing.erase(std::string(path.to_string()));
            out.push_back(size(path, nar_size));
        });
        if (!missing.empty())
            throw Failure(Failure::Other, "'" + *missing.begin() + "' is not valid");
        return out;
    });
}

void Handle::add_temp_root(rust::Str path) const
{
    guard([&] { impl->store->addTempRoot(store_path({path.data(), path.size()})); });
}

void Handle::add_indirect_root(rust::Str path, rust::Slice<const uint8_t> link) const
{
    // Creates the link as well as registering it.
    guard([&] { impl->local().addPermRoot(store_path({path.data(), path.size()}), text(link)); });
}

// ---- a database of one's own -------------------------------------------------------------------------------

rust::Vec<rust::String> Handle::valid_paths() const
{
    return guard([&] {
        rust::Vec<rust::String> names;
        for (auto & path : impl->store->queryAllValidPaths())
            names.push_back(base_name(path));
        return names;
    });
}

// All of `infos` in one transaction. References are places in `names`; what they lead to has to be valid, or in `infos` as well.
void Handle::register_paths(rust::Slice<const rust::String> names, rust::Slice<const Info> infos) const
{
    guard([&] {
        auto path = [](const rust::String & name) { return store_path({name.data(), name.size()}); };
        nix::ValidPathInfos all;
        for (auto & given : infos) {
            auto info = impl->valid(given);
            for (auto place : given.references)
                info.references.insert(path(names.at(place)));
            all.emplace(info.path, info);
        }
        impl->database().registerValidPaths(all);
    });
}

// The same for an empty database of schema 10, without derivations, several times as fast: Nix looks up each reference by its text, and
// keeps three indices in order. References are places in `infos`, and lead to what comes before, or to the path itself. Nothing is
// done, and the answer is no, if the database has other tables.
bool Handle::fill(rust::Slice<const uint8_t> database, rust::Slice<const Info> infos) const
{
    return guard([&] {
        auto & store = *impl->store;
        auto path = [&](const rust::String & name) {
            return store.printStorePath(store_path({name.data(), name.size()}));
        };
        auto string = [](const rust::String & text) { return std::string(text.data(), text.size()); };
        auto db = compat::open_database(text(database));
        if (!has_known_tables(db) || !texts(db, "select path from ValidPaths limit 1").empty())
            return false;
        db.exec("pragma synchronous = normal");
        // Each reference leads to what has been written.
        db.exec("pragma foreign_keys = 0");

        nix::SQLiteTxn transaction(db);
        auto indices = texts(db, "select name from sqlite_master where type = 'index' and tbl_name = 'Refs' and sql is not null");
        auto made = texts(db, "select sql from sqlite_master where type = 'index' and tbl_name = 'Refs' and sql is not null");
        for (auto & index : indices)
            db.exec("drop index \"" + index + "\"");
        nix::SQLiteStmt add_path(db, "insert into ValidPaths (id, path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) values (?, ?, ?, ?, ?, ?, ?, ?, ?)");
        nix::SQLiteStmt add_reference(db, "insert into Refs (referrer, reference) values (?, ?)");
        int64_t id = 0;
        for (auto & given : infos) {
            auto info = impl->valid(given);
            // It is computed from the references as well.
            if (info.ca) {
                for (auto place : given.references)
                    info.references.insert(store_path({infos.at(place).path.data(), infos.at(place).path.size()}));
            }
            if (info.ca && !info.isContentAddressed(store))
                throw Failure(Failure::Other, "'" + string(given.path) + "' is not what its content address says");
            std::string signatures;
            for (auto & signature : info.sigs)
                signatures.append(signatures.empty() ? "" : " ").append(compat::signature(signature));
            auto use = add_path.use();
            compat::bind(use, ++id);
            compat::bind(use, path(given.path));
            compat::bind(use, info.narHash.to_string(nix::HashFormat::Base16, true));
            compat::bind(use, static_cast<int64_t>(info.registrationTime ? info.registrationTime : time(nullptr)));
            compat::bind(use, info.deriver ? store.printStorePath(*info.deriver) : std::string(), bool(info.deriver));
            compat::bind(use, static_cast<int64_t>(info.narSize), info.narSize != 0);
            compat::bind(use, int64_t(1), info.ultimate);
            compat::bind(use, signatures, !signatures.empty());
            compat::bind(use, nix::renderContentAddress(info.ca), bool(info.ca));
            use.exec();
            for (auto place : given.references) {
                auto reference = add_reference.use();
                compat::bind(reference, id);
                compat::bind(reference, static_cast<int64_t>(place) + 1);
                reference.exec();
            }
        }
        for (auto & sql : made)
            db.exec(sql);
        transaction.commit();
        return true;
    });
}

// Drops what has no name in the store's directory. No file is examined but that directory.
void Handle::drop_absent() const
{
    guard([&] {
        if (impl->database().verifyStore(false, nix::NoRepair))
            throw Failure(Failure::Other, "a path is absent to which others refer");
    });
}

} // namespace nix_store_fs
